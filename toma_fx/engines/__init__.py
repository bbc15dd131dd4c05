"""Doors of other people's engines: one module each, and nothing of theirs imported with it.

An engine loads a denoiser and calls `torch.compile` itself. Its module here wraps the one method in
which it does that: the denoiser is followed, and calls that name no backend come to toma_fx while
the method runs, and at no other time. Nothing happens unless it is asked for.
"""
