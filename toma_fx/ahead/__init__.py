"""Ahead of time: a model with token merging as a package of native code.

    export      model → torch.export → passes → lower → AOTInductor → .pt2
    transform   the middle alone: exported program in, exported program out
    load        .pt2 → a callable with the model's signature, statistics and reset

What a package computes is what `torch.compile(model, backend="toma")` computes. Its plans and its
guard are buffers of the program, which it changes from call to call; nothing of toma_fx is needed
to run it, on a CPU or in C++.
"""

from toma_fx.ahead.export import export
from toma_fx.ahead.load import LoadedModel, load
from toma_fx.ahead.transform import transform

__all__ = ["LoadedModel", "export", "load", "transform"]
