"""What Inductor would generate for a GPU, found where there is none.

    pretended   a GPU of which only the properties exist
    launches    each launch of a compiled step: which part of it, and how many bytes it moves
    counted     launches of merged and plain steps, side by side
    resources   registers and memory of the planning kernels, compiled for every architecture

`python -m benchmarks.generated` writes the launches, `python -m benchmarks.generated.resources`
the resources.
"""
