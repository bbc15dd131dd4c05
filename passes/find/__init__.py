"""Stage 2: what provably may run on merged tokens. Read-only.

Why: no model class is named anywhere, so that candidates come from the graph (`anchors`), and so
does the proof (`find`, by the rules of `layouts/`).

Before: a normalised graph. After: one `Region` per attention or MLP, with the steps of a complete
proof, or the reason why there is none. Called by `runner`; what it leaves is `region.Region`, which
every later stage reads.
"""
