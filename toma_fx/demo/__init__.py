"""The demonstration: `python -m toma_fx.demo`, or `make demo`.

    photograph   a photograph as tokens: merged, and restored to full length
    pictures     what the photograph shows, as PNG files
    generators   small models, trained on emoji, in the architectures of SDXL and Flux
    prompts      what they draw, plain and with a share of the tokens merged
    pipelines    SDXL and Flux pipelines of diffusers, small, with random weights
    comparison   plain `torch.compile` beside the merging backend: speed and change of the result
    page         all of it on one page, `index.html`

Nothing is downloaded: what is not trained has random weights, and the photograph ships with
scikit-image.
"""
