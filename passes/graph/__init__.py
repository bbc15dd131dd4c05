"""Small questions that every stage asks of a graph, and the one way to build one.

Why: a size, a module path, what a node depends on, what it costs, which operation is attention:
such answers must be the same in every pass. Nothing here knows of tokens that merge.

Before: any ATen graph with fake values. After: the same graph; only `emit` writes, and it writes
where its caller says. Called by every other folder; imports none of them.
"""
