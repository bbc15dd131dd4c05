"""What merging does to pictures: the same seeds and captions, plain against shortened.

    contestant    one way to make the pictures, as data
    contestants   all of them, in lists of options
    caches        caches of whole steps, as diffusers ships them; `deepcache` for UNets
    forms         the form of a denoiser that a contestant runs; `own`: compiled beside others
    settle        thresholds for a share of the work
    painters      prompts and seeds to pictures, with any denoiser: small generators, real pipelines
    produce       pictures of every contestant, kept on disk: a run that stops goes on
    networks      features of pictures, from optional packages or local folders
    measures      distances of pairs and of sets, and their confidence intervals
    score         pictures to numbers
    speed         seconds of contestants beside the plain model, in turns
    flops         FLOPs of generations, counted as they run
    crew          processes that share a run, and which batches are whose
    ray_engine    the same as tasks of Ray, on one machine or several
    run           one model at one number of steps: all of the above
    rows          results, and curves of cost and distance through them
    verdicts      who is nearer at equal FLOPs and equal time
    report        tables; plots: Pareto plots and grids of pictures; notes: what stands under them

The names are exact. SSCD is not DINO, an LPIPS-like distance is not LPIPS, and a generator of a few
million parameters is not SDXL: every table says so.
"""
