"""What merging does to pictures: the same seeds and captions, plain against merged.

    contestants   what is compared, as data: options, steps, seeds
    painters      prompts and seeds to pictures, with any denoiser: small generators, real pipelines
    produce       pictures of every contestant, kept on disk: a run that stops goes on
    networks      features of pictures, from optional packages or local folders
    measures      distances of pairs and of sets, and their confidence intervals
    speed         seconds of contestants beside the plain model, in turns
    score         pictures to numbers
    report        tables; plots: the Pareto plot and grids of pictures

The names are exact. SSCD is not DINO, an LPIPS-like distance is not LPIPS, and a generator of a few
million parameters is not SDXL: every table says so.
"""
