"""What a denoiser sends between GPUs, merged and not, and how long a call then takes.

    python -m benchmarks.scale
    python -m benchmarks.scale --model wan --ranks 2 4 8 --ratio 0.75 --bandwidth 50

Arithmetic on the sizes of a model, a device's profile and a bandwidth: nothing is run, and nothing
of it was measured. `docs/scale.md` says what the formulas leave out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toma_fx.devices import PROFILES, DeviceProfile

WINDOW = 64
"""Tokens of a window, by default."""
HALF = 2
"""Bytes of a number in bfloat16."""


@dataclass(frozen=True)
class Blocks:
    """Blocks that are alike.

    Attributes:
        count: of them.
        weights: numbers that a token meets in one, in units of C².
        regions: that merge and unmerge for themselves.
        words: of a cross-attention beside; 0 without one.
    """

    count: int
    weights: float
    regions: int
    words: int = 0


@dataclass(frozen=True)
class Model:
    """Sizes of a denoiser.

    Attributes:
        name: with the size of its picture or video.
        grid: of tokens.
        text: tokens that are sharded beside them, and attend with them.
        channels: C.
        blocks: of each kind; each has one attention over all tokens.
    """

    name: str
    grid: tuple[int, ...]
    text: int
    channels: int
    blocks: tuple[Blocks, ...]

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def attentions(self) -> int:
        return sum(kind.count for kind in self.blocks)


MODELS = {
    "flux": Model(
        "Flux.1, 1024 × 1024", (64, 64), 512, 3072, (Blocks(19, 12, 2), Blocks(38, 12, 1))
    ),
    "wan": Model(
        "Wan 14B, 81 frames of 1280 × 720",
        (21, 45, 80),
        0,
        5120,
        (Blocks(40, 4 + 2 + 2 * 13824 / 5120, 3, words=512),),
    ),
    "hunyuan": Model(
        "HunyuanVideo, 129 frames of 1280 × 720",
        (33, 45, 80),
        256,
        3072,
        (Blocks(20, 12, 2), Blocks(40, 12, 1)),
    ),
}


@dataclass(frozen=True)
class Call:
    """One call of a denoiser on one of several ranks.

    Attributes:
        compute: seconds of products.
        sent: bytes that leave the rank.
        exchange: seconds in which they do.
    """

    compute: float
    sent: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Nothing is computed while a rank waits for what others send."""
        return self.compute + self.exchange


def exchanged(
    tokens: float, text: float, channels: int, ranks: int, ratio: float, item: int = HALF
) -> float:
    """Bytes of one all-to-all: a rank's text and what is left of its tokens, all channels.

    Args:
        tokens: of all ranks.
        text: of all ranks, 0 where every rank has it whole.
        channels: C.
        ranks: that share them.
        ratio: of the tokens that merging removes; 0 where this operand is not merged.
        item: bytes of a number.
    """
    return (text + tokens * (1 - ratio)) * channels * item / ranks


def sent(model: Model, ranks: int, ratio: float, keys: str = "computed") -> float:
    """Bytes that leave a rank in a call: of each all-to-all all but its own share.

    Queries, keys, values and the result of each attention are exchanged; with `keys="all"` keys
    and values are not merged.
    """
    merged, whole = (
        exchanged(model.tokens, model.text, model.channels, ranks, share) for share in (ratio, 0.0)
    )
    each = 2 * merged + 2 * (merged if keys == "computed" else whole)
    return model.attentions * each * (ranks - 1) / ranks


def flops(model: Model, ranks: int, ratio: float) -> tuple[float, float, float]:
    """FLOPs of a rank in linears, in attention, and in the products of merging and unmerging."""
    C = model.channels
    left = model.text + model.tokens * (1 - ratio)
    linear = attention = merging = 0.0
    for kind in model.blocks:
        linear += kind.count * 2 * kind.weights * C**2 * left
        attention += kind.count * 4 * C * left * (left + kind.words)
        if ratio:
            pairs = model.tokens * WINDOW * (1 - ratio)
            merging += kind.count * kind.regions * 4 * C * pairs
    return linear / ranks, attention / ranks, merging / ranks


def simulate(
    model: Model,
    ranks: int,
    ratio: float,
    profile: DeviceProfile,
    bandwidth: float,
    latency: float,
    keys: str = "computed",
) -> Call:
    """A call on `ranks` devices of a profile, in half precision.

    Args:
        model: its sizes.
        ranks: devices; 1 exchanges nothing.
        ratio: of the tokens that merging removes.
        profile: of each device.
        bandwidth: bytes a second that leave a device.
        latency: seconds that every exchange costs beside its bytes.
        keys: `TomaConfig.keys`.
    """
    rates = profile.half
    linear, attention, merging = flops(model, ranks, ratio)
    compute = linear / rates.linear + attention / rates.attention + merging / rates.batched
    if ranks == 1:
        return Call(compute, 0.0, 0.0)
    leaving = sent(model, ranks, ratio, keys)
    exchange = leaving / bandwidth + 4 * model.attentions * latency
    return Call(compute, leaving, exchange)


def table(
    models: Iterable[Model],
    counts: Sequence[int],
    ratios: Sequence[float],
    profile: DeviceProfile,
    bandwidth: float,
    latency: float,
    keys: str = "computed",
) -> str:
    """Markdown: a row for each model, number of devices and ratio."""
    lines = [
        "| model | GPUs | ratio | sent by each | of it exchanging | call | of one plain GPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in models:
        alone = simulate(model, 1, 0.0, profile, bandwidth, latency).seconds
        for ranks in counts:
            for ratio in ratios:
                call = simulate(model, ranks, ratio, profile, bandwidth, latency, keys)
                cells = (
                    model.name,
                    str(ranks),
                    f"{ratio:g}",
                    f"{call.sent / 1e9:.2f} GB",
                    f"{call.exchange / call.seconds:.0%}",
                    f"{call.seconds * 1e3:.0f} ms",
                    f"{alone / call.seconds:.1f}×",
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="devices")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.0, 0.5, 0.75])
    parser.add_argument("--keys", choices=("computed", "all"), default="computed")
    parser.add_argument("--device", choices=sorted(PROFILES), default="h100")
    parser.add_argument("--bandwidth", type=float, default=450, help="GB/s that leave a device")
    parser.add_argument("--latency", type=float, default=20, help="µs of an exchange")
    given = parser.parse_args(arguments)
    print(
        table(
            [MODELS[name] for name in given.model],
            given.ranks,
            given.ratio,
            PROFILES[given.device],
            given.bandwidth * 1e9,
            given.latency * 1e-6,
            given.keys,
        )
    )


if __name__ == "__main__":
    main()
