"""The methods of token merging, by the names of `TomaConfig.method`."""

from toma_fx.passes.methods import downsampled, matched, toma
from toma_fx.passes.methods.base import Method, Plan

METHODS: dict[str, Method] = {
    "toma": toma.METHOD,
    "tomesd": matched.TOMESD,
    "tofu": matched.TOFU,
    "todo": downsampled.METHOD,
}

__all__ = ["METHODS", "Method", "Plan"]
