"""Where tokens stand, and how that flows through a graph: one rule per operation.

Why: a merge is legal where every operation downstream treats tokens alike. `rules/` says so of one
operation each; `propagate` asks them forward (what becomes of merged tokens), `streams` backward
(where a token axis begins). A new operation is a new rule in `rules/`, and nothing else.

Before: a normalised graph. After: the same graph, and layouts of its nodes or a refusal with its
reason. Called by `find`, and by `scope` and `hoist` in `plan/`; `analysis` holds what all of them
know of one graph.
"""
