"""Token merging for diffusion models as a compiler pass.

    torch.compile(model, backend=toma_backend)

finds the attention and MLP regions of the traced graph and runs them on merged tokens.
"""

from toma_fx.ahead import LoadedModel, export, load, transform
from toma_fx.backend import last_report, rewrite, toma_backend
from toma_fx.bisect import Bisection, bisect
from toma_fx.config import TomaConfig
from toma_fx.errors import (
    AutogradError,
    BisectError,
    CallError,
    CannotRewrite,
    ConfigError,
    EngineError,
    ExportError,
    LimitWarning,
    MismatchError,
    PackageError,
    PipelineError,
    PipelineWarning,
    PlainModelWarning,
    TomaError,
    TomaWarning,
)
from toma_fx.explain import explain
from toma_fx.following import Following, follow, unfollow
from toma_fx.passes import RewriteResult
from toma_fx.reference import select_destinations
from toma_fx.report import RegionReport, Report
from toma_fx.reuse import ReuseStats, reset, reuse_stats, stream

__all__ = [
    "AutogradError",
    "BisectError",
    "Bisection",
    "CallError",
    "CannotRewrite",
    "ConfigError",
    "EngineError",
    "ExportError",
    "Following",
    "LimitWarning",
    "LoadedModel",
    "MismatchError",
    "PackageError",
    "PipelineError",
    "PipelineWarning",
    "PlainModelWarning",
    "RegionReport",
    "Report",
    "ReuseStats",
    "RewriteResult",
    "TomaConfig",
    "TomaError",
    "TomaWarning",
    "bisect",
    "explain",
    "export",
    "follow",
    "last_report",
    "load",
    "reset",
    "reuse_stats",
    "rewrite",
    "select_destinations",
    "stream",
    "toma_backend",
    "transform",
    "unfollow",
]
