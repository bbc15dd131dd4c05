"""The demonstration: `python -m toma_fx.demo`, or `make demo`.

    pipelines    SDXL and Flux pipelines of diffusers, small, with random weights
    comparison   plain `torch.compile` beside the merging backend: speed and change of the result
    photograph   a photograph as tokens: merged, and restored to full length
    pictures     what the photograph shows, as PNG files

Nothing is downloaded: weights are random, and the photograph ships with scikit-image.
"""
