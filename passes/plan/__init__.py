"""Stage 3: what is merged of all that may be, in which windows, in which order. Read-only.

Why: the proof says what can be done, the configuration and the device what should be: here falls
the decision that a region is not worth it (`plan`, from the seconds of `forecast`), that whole
blocks merge once (`scope`), and that the residual stream stays in window order (`hoist`).

Before: regions with proofs. After: every region merged, skipped or refused with its reason, each
merged one in a `Group`, and the `Stage`s of the streams in window order. Called by `runner`.
"""
