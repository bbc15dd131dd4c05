"""Everything that a GPU is needed for, by one command, on a machine that is lent for half an hour.

    python -m benchmarks.gpu --minutes 25 --out /tmp/gpu --pack results

    phases      what is measured, in order of worth, each by a command of its own
    runner      commands in processes with a limit; a later call goes on with what is missing
    smoke       small models plain and merged, beside a CPU in float32
    graphs      CUDA graphs: captures, waits of the host, results
    targets     what the race should show, beside what it shows
    summary     all results as one Markdown file, and packed into few files

The race, its parts, kernels, memory, packages and training are other benchmarks, which the phases
call. `README.md` beside this file says how to bring the packages along.
"""
