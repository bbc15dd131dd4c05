"""The race: every way to make a denoising step faster, in one compiler, on one machine.

    contestants   who takes part, and with which options
    grid          which models, picture sizes and ratios they meet on
    models        the models, and copies of them that share their weights
    weights       random weights, drawn where they are used
    blocks        models that people run today, at full width with few blocks
    start         from a contestant to something that runs a step
    pace          steps of a schedule differ: time of a whole cycle from its phases
    heat          compile, warm, time in turns with plain `torch.compile`, profile
    crew, member  the same in processes of their own, which compile at once
    turns         one process at a time on the device, while several compile
    profiled      one step under the profiler: kernels and memory
    store         results on disk, one by one, so that a run can go on where it stopped
    table, plots  what a reader sees
    labels, parts where the time of a step goes

`python -m benchmarks.speed` runs it; `python -m benchmarks.parts` takes one step apart.
"""
