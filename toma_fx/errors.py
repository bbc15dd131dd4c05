"""The errors that toma_fx raises. Every message says what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node


class TomaError(Exception):
    """Base of all errors of this package."""


class ConfigError(TomaError, ValueError):
    """A value of `TomaConfig`, or an option of the backend, is not usable."""


class AutogradError(TomaError, RuntimeError):
    """The call needs gradients; merged plans are for inference only."""


class ModelError(TomaError, ValueError):
    """A model cannot be built, or not called as asked; the message says which part and why."""


class PipelineError(TomaError, ValueError):
    """Token merging cannot be applied to this pipeline, or removed from it."""


class CannotRewrite(TomaError):  # noqa: N818 - a refusal, not a failure: it is caught and reported
    """A region, or the whole graph, stays as it was.

    `reason` is a sentence for the report. `node` is the node where the proof stopped, if one did.
    """

    def __init__(self, reason: str, node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node

    def __str__(self) -> str:
        return self.reason if self.node is None else f"{self.reason} (at {self.node.name})"


class ExportError(TomaError, RuntimeError):
    """A model cannot be exported or packaged; the message says at which step and why."""


class PackageError(TomaError, ValueError):
    """A file is no package of toma_fx, or not a whole one."""


class MismatchError(PackageError):
    """A package was built for another device, processor or torch release."""


class BisectError(TomaError, RuntimeError):
    """No merged region is to blame for a result; the message says what was seen."""


class CallError(TomaError, ValueError):
    """A package was not built for the arguments of a call; the message lists what it serves."""


class EngineError(TomaError, RuntimeError):
    """An engine lacks what its adapter wraps; the message says which version it was written for."""


class TomaWarning(UserWarning):
    """Base of all warnings of this package."""


class PlainModelWarning(TomaWarning):
    """The plain model runs where merging was asked for; the message says why and what to do."""


class LimitWarning(PlainModelWarning):
    """Dynamo compiles no more graphs of a function, so that the plain model runs.

    Attributes:
        limit: its name among the options of `torch._dynamo.config`.
        value: what it is set to.
        reason: of the last recompile, in Dynamo's words.
    """

    def __init__(self, message: str, limit: str, value: int, reason: str) -> None:
        super().__init__(message)
        self.limit = limit
        self.value = value
        self.reason = reason


class PipelineWarning(TomaWarning):
    """A pipeline that `apply` was not given calls a merged denoiser, and cannot be followed."""


class MissingPackageError(TomaError, ImportError):
    """An optional package is needed; the message names it and the extra that installs it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}: pip install {package}, or toma_fx[{extra}]")
