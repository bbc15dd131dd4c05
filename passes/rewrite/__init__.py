"""Stage 4: the merged graph. The only folder that writes nodes, and it writes a copy.

Why: all is decided, so that what is left is to build, and to hold each node against what its plain
one was (`expect`): a proof that was wrong shows here, and not in a picture.

Before: a normalised graph, groups and stages. After: a new graph with the same inputs and outputs,
or `RegionRefused`, and then nothing has changed. Called by `runner`, and by `autotune` on one
region alone.
"""
