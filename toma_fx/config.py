"""What a user may choose, checked at the door."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from toma_fx.errors import ConfigError
from toma_fx.share import share_of

if TYPE_CHECKING:
    from typing_extensions import Self

KINDS = ("self_attention", "cross_attention", "joint_attention", "parallel", "feed_forward")
ORDERS = ("tile", "stripe", "hilbert", "global")
SHARES = ("run", "block", "region")
SCOPES = ("auto", "region", "block", "span")
FIT = "fit"
KEYS = ("auto", "computed", "all")
UNMERGES = ("transpose", "pinv")
GUARDS = ("timestep", "conditioning", "turns", "rises")
REFERENCES = ("keep", "merge")
METHODS = ("toma", "tomesd", "tofu", "todo", "refresh")
TODO_RATIOS = {1 - 1 / cell: f"1 - 1/{cell}" for cell in (2, 4, 9, 16)}


@dataclass(frozen=True)
class TomaConfig:
    """How tokens are merged. Immutable and hashable; every field has a default.

    Args:
        ratio: share of tokens removed in every window, in [0, 1). A larger value is faster and
            costs detail; 0 leaves the model as it is.
        window: side of a window in tokens; a window holds `window²` tokens of one frame. Or
            `(frames, height, width)`: windows of a video that hold tokens of several frames; at
            equal tokens these were nearer to the plain model (small, of random weights) than
            those of one frame, unless the picture moved fast. A larger value finds better
            destinations and costs planning time (the square of the tokens a window).
        order: which tokens share a window. `"tile"`: squares of the grid (a Hilbert curve where
            the grid does not divide); `"hilbert"`: runs of a Hilbert curve; `"stripe"`: runs of
            consecutive tokens, needs no grid; `"global"`: one window, whose planning grows with
            the square of the token count.
        temperature: τ of the assignment softmax, in units of cosine similarity. A larger value
            blends more destinations into each token and costs sharpness.
        unmerge: how tokens return to full length: `"transpose"` (the public code), or `"pinv"`
            (the paper's text), which inverts the merge and costs a small eigendecomposition per
            window and weighing.
        share: which regions use one plan: `"run"` (contiguous regions of one stream, token
            count, channels and block class), `"block"`, or `"region"` (each its own). Sharing
            less follows the features more closely and costs one planning more per plan.
        scope: what runs between a merge and its unmerge: `"region"` (one attention or MLP, as in
            the paper), `"block"` (all of a block's, on a merged residual stream; only the change
            that the block makes is added back), or `"span"` (the same over `span` blocks). A
            larger scope merges less often, runs norms on merged tokens too, and is further from
            the plain picture: inside it tokens see one another as they were where it began. For
            `"refresh"` it costs nothing of the picture: what is predicted and spread is the sum
            over the scope, and memory is one stream a scope; but for gates that the timestep
            moves, which a region's memory leaves out and a block's contains. `"auto"` is
            `"region"`, and for `"refresh"` the largest run of blocks without such a gate.
        span: blocks in a scope of `"span"`. A larger value is faster and costs detail.
        select_every: steps between two selections of destinations, where the graph has a
            timestep. A larger value is cheaper and uses older destinations. The default is the
            longest at which a small trained model stays as near to the plain picture as methods
            that plan at every call (`benchmarks/quality`); the paper's 10 is meant for 50 steps.
        weigh_every: steps between two computations of the weights, likewise; the paper's is 5.
        regions: `"auto"` merges a region where the device's profile predicts a gain; `"all"`
            merges whatever may be merged; a tuple of kinds (`self_attention`,
            `cross_attention`, `joint_attention`, `parallel`, `feed_forward`) all of those.
        device: profile that predicts, a key of `toma_fx.devices.PROFILES`; `"measure"` measures
            the machine, once; None takes what is known of the model's device.
        autotune: with `"auto"`, compile and time one region of each class with and without
            merging instead of predicting. Costs two compiles a class (SDXL has 6).
        include: patterns (as in `fnmatch`) over module paths; only matching regions are merged.
            `"feed_forward:up_blocks.*"` names a kind beside the path.
        exclude: patterns, likewise, over what stays at full length.
        skip_blocks: the first blocks of each class stay at full length, as in the public code for
            Flux (5). Early blocks settle the composition, and where tokens learn of their places
            from RoPE alone, those of the first blocks look alike everywhere. A larger value is
            slower and nearer to the plain picture.
        min_tokens: streams with fewer tokens stay at full length; below some size the launches
            cost more than the tokens.
        grid: `(height, width)` or `(frames, height, width)` in tokens, where the graph does not
            show it; `"square"` allows guessing a square; `None` refuses to guess. Of a packed
            stream with more tokens it is the part that is merged.
        grid_start: the first token of that part: text, or the picture that is edited, may be
            packed in front of it.
        references: what becomes of pictures that are edited, where the graph or `grid` tells them
            from the one that is drawn. `"keep"` leaves them at full length, as text; `"merge"`
            merges them as well, in windows of their own, which is faster and costs likeness.
        cfg_pairs: True if the batch is two halves of one guidance batch, which then share one
            selection (their gains are added); None or False selects for every item alone.
        timestep_input: name of the model's timestep argument, where the graph does not show it.
        guard: what tells one generation from another. `"timestep"`, always: one that rises, or
            stays while the latents change, begins a picture; second stages of a step (Heun, PNDM)
            do not. `"conditioning"`: what was made under one prompt is used under no other, and
            a prompt that no slot knows selects anew; without it prompts may change from step to
            step and keep their plan, and a picture may begin on the plan of another. `"turns"`:
            generations of one prompt and other seeds may take turns step by step; costs a
            selection at the second step of a picture behind one that had a single step.
            `"rises"`: the model's timestep rises within a picture (Z-Image and Lumina take
            `1 - t`), and one that falls begins the next; the diffusers door knows these models.
            Generations of one prompt that interleave out of step look like one generation: keep
            those apart with `toma_fx.stream`.
        slots: how many conditionings keep a plan at a time; sequential guidance needs two, and
            two for each picture that takes turns with others. Where they run out the one that was
            used longest ago is given up. A larger value costs the memory of one set of plans each;
            with more than one, every plan is copied once a step.
        method: what merges: `"toma"`; or what it is compared with, as published, but compiled:
            `"tomesd"` (bipartite matching on 2×2 cells, averages, copies; ratio at most 0.75),
            `"tofu"` (the same matching; early blocks drop tokens, later ones keep the norm),
            `"todo"` (keys and values of self-attention from one token of a cell; ratio 1/2, 3/4,
            8/9 or 15/16). Those plan at every call, and have no window, order, temperature,
            unmerge or schedule.
            Or `"refresh"`: a step computes a share of the tokens in turn, and every other one is
            predicted from its own last values and corrected by its computed neighbours. It plans
            nothing and remembers one or two values a token (see `history`); ratio 1 − p/q with q
            up to 8. Meant for many steps: below about eight, merging is nearer.
        keys: whose keys and values attention sees: `"computed"`, those of merged tokens, or
            `"all"`: two projections more at full length, and scores for every token, for a nearer
            picture. `"auto"` is `"computed"`; for `"refresh"` it is `"all"` where rotary tables
            give the places inside the attention, which then looks for tokens in all of them.
        history: values that `"refresh"` keeps of a token, 1 or 2. Two tell where it is going, and
            cost `2 · N · C` numbers a scope and slot in the dtype of the activations; one half.
        extrapolate: α of `"refresh"`, how much of its own last change a token is carried on by.
            `"fit"` fits it to the tokens that a step computes, for each memory and item of a batch:
            one reduction over them; it bends, so that a part of an interval is followed more than
            all of it. Or a number in [0, 2): a larger one is nearer where little
            changes in a step, and overshoots where much does. With a number every scope gives the
            same picture, and a fitted one follows what a scope adds.
        gain: γ of `"refresh"`, how much of its neighbours' change a token receives, in [0, 2). A
            larger value follows what is new sooner, and blurs what is its own.

    Raises:
        ConfigError: a value is out of its range; the message names the field and the range.

    Source: ToMA (arXiv 2509.10918), section 4, and its public code for the default values.
    """

    ratio: float = 0.5
    window: int | tuple[int, int, int] = 8
    order: str = "tile"
    temperature: float = 1e-3
    unmerge: str = "transpose"
    share: str = "run"
    scope: str = "auto"
    span: int = 4
    select_every: int = 3
    weigh_every: int = 3
    regions: str | tuple[str, ...] = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    skip_blocks: int = 0
    min_tokens: int = 256
    grid: tuple[int, ...] | str | None = None
    grid_start: int = 0
    references: str = "keep"
    cfg_pairs: bool | None = None
    timestep_input: str | None = None
    guard: tuple[str, ...] = ("timestep", "conditioning")
    slots: int = 2
    device: str | None = None
    autotune: bool = False
    method: str = "toma"
    keys: str = "auto"
    history: int = 2
    extrapolate: float | str = FIT
    gain: float = 0.5

    def __new__(cls, *_: object, **fields: object) -> Self:
        """Name the closest field where one does not exist."""
        for name in fields:
            if name not in cls.field_names():
                hint = closest(name, cls.field_names())
                raise ConfigError(f"{cls.__name__} has no field {name!r}{hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        for name in ("include", "exclude"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        _number("ratio", self.ratio, low=0.0, high=1.0)
        _number("temperature", self.temperature, low=0.0, open_low=True)
        object.__setattr__(self, "window", _window(self.window))
        for name in ("select_every", "weigh_every", "min_tokens", "span", "slots"):
            _count(name, getattr(self, name))
        _count("skip_blocks", self.skip_blocks, least=0)
        _count("grid_start", self.grid_start, least=0)
        _choice("references", self.references, REFERENCES)
        _choice("method", self.method, METHODS)
        _ratio_of(self.method, self.ratio)
        _choice("order", self.order, ORDERS)
        _choice("unmerge", self.unmerge, UNMERGES)
        _choice("share", self.share, SHARES)
        _scope(self.scope, self.share)
        if self.method == "todo" and self.scope not in ("auto", "region"):
            raise ConfigError("todo merges nothing that could stay merged: it has no scope")
        _choice("keys", self.keys, KEYS)
        if self.method == "todo" and self.keys == "all":
            raise ConfigError('todo merges keys and values alone: keys="all" would leave nothing')
        if self.history not in (1, 2):
            raise ConfigError(f"history must be 1 or 2, not {self.history!r}")
        if self.extrapolate != FIT:
            _number("extrapolate", self.extrapolate, low=0.0, high=2.0, others=(FIT,))
        _number("gain", self.gain, low=0.0, high=2.0)
        object.__setattr__(self, "regions", _kinds(self.regions))
        object.__setattr__(self, "grid", _grid(self.grid))
        object.__setattr__(self, "guard", _guard(self.guard))
        if self.timestep_input is not None and not isinstance(self.timestep_input, str):
            raise ConfigError(f"timestep_input must be a name or None, not {self.timestep_input!r}")
        if self.device is not None and not isinstance(self.device, str):
            raise ConfigError(f"device must be the name of a profile or None, not {self.device!r}")
        if not isinstance(self.autotune, bool):
            raise ConfigError(f"autotune must be True or False, not {self.autotune!r}")
        if self.autotune and self.regions != "auto":
            raise ConfigError('autotune chooses regions: it needs regions="auto"')
        if self.cfg_pairs not in (None, True, False):
            raise ConfigError(f"cfg_pairs must be True, False or None, not {self.cfg_pairs!r}")

    @classmethod
    def sdxl_paper(cls, **changes: Any) -> TomaConfig:
        """The paper's schedule for SDXL: destinations every 10 steps, weights every 5."""
        return cls(**{"select_every": 10, "weigh_every": 5, "share": "run", **changes})

    @classmethod
    def flux_paper(cls, **changes: Any) -> TomaConfig:
        """The public code's schedule for Flux: anew at each step, shared by blocks of a kind."""
        return cls(**{"select_every": 1, "weigh_every": 1, "share": "run", **changes})

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))


def split_options(
    options: Mapping[str, Any] | None, others: Iterable[str]
) -> tuple[TomaConfig, dict[str, Any]]:
    """Tell the fields of `TomaConfig` from the options of the inner compiler, by name.

    Args:
        options: as passed to `torch.compile(options=...)`.
        others: the names that the inner compiler knows.

    Raises:
        ConfigError: a name belongs to neither; the message names the closest one.
    """
    mine = TomaConfig.field_names()
    known = {*mine, *others}
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for name, value in (options or {}).items():
        key = name.replace("-", "_")
        if key not in known:
            raise ConfigError(f"unknown option {name!r}{closest(key, known)}")
        (ours if key in mine else theirs)[key] = value
    return TomaConfig(**ours), theirs


def plain_number(value: Any) -> Any:
    """A number of Python for one of numpy; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def closest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'ratio'?"`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _number(
    name: str,
    value: object,
    *,
    low: float,
    high: float | None = None,
    open_low: bool = False,
    others: tuple[str, ...] = (),
) -> None:
    span = f"{'(' if open_low else '['}{low:g}, {'∞' if high is None else f'{high:g}'})"
    span = " or ".join((span, *map(repr, others)))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number in {span}, not {value!r}")
    above = value > low if open_low else value >= low
    if not (above and value < (float("inf") if high is None else high)):
        raise ConfigError(f"{name} must lie in {span}, not {value!r}")


def _count(name: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = closest(value, allowed) if isinstance(value, str) else ""
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}{hint}")


def _ratio_of(method: str, ratio: float) -> None:
    """What a cell of tokens can lose."""
    if method in ("tomesd", "tofu") and ratio > 0.75:
        raise ConfigError(
            f"{method} keeps one token of every 2×2 cell: ratio must lie in [0, 0.75], not {ratio}"
        )
    if method == "todo" and ratio and not any(abs(ratio - r) < 1e-2 for r in TODO_RATIOS):
        known = ", ".join(TODO_RATIOS.values())
        raise ConfigError(f"todo keeps one token of a cell: ratio must be {known}, not {ratio}")
    if method == "refresh" and ratio:
        share_of(ratio)


def _scope(scope: object, share: str) -> None:
    """A scope has one plan, so the regions in it must share theirs."""
    _choice("scope", scope, SCOPES)
    wide = {"block": ("run", "block"), "span": ("run",)}.get(str(scope), SHARES)
    if share not in wide:
        names = " or ".join(f'"{name}"' for name in wide)
        raise ConfigError(f'scope="{scope}" needs share={names}, not "{share}"')


def _patterns(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} must be a tuple of patterns over module paths, not {value!r}")
    return tuple(value)


def _kinds(value: object) -> str | tuple[str, ...]:
    if value in ("all", "auto"):
        return str(value)
    kinds = _patterns("regions", value)
    if not kinds:
        raise ConfigError('regions must be "auto", "all" or name at least one kind')
    for kind in kinds:
        _choice("regions", kind, KINDS)
    return kinds


def _guard(value: object) -> tuple[str, ...]:
    names = _patterns("guard", value)
    for name in names:
        _choice("guard", name, GUARDS)
    if "timestep" not in names:
        raise ConfigError('guard must contain "timestep": without it no plan could be reused')
    return names


def _window(value: object) -> int | tuple[int, int, int]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        _count("window", value)
        assert isinstance(value, int)
        return value
    sides = tuple(value)
    if len(sides) != 3:
        raise ConfigError(
            f"window must be a side, or (frames, height, width), not {len(sides)} sides"
        )
    for side in sides:
        _count("every side of window", side)
    return sides


def _grid(value: object) -> tuple[int, ...] | str | None:
    if value is None or value == "square":
        return value
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f'grid must be (height, width), "square" or None, not {value!r}')
    sides = tuple(plain_number(side) for side in value)
    if len(sides) not in (2, 3):
        raise ConfigError(f"grid must have two or three sides, not {len(sides)}")
    for side in sides:
        _count("every side of grid", side)
    return sides
