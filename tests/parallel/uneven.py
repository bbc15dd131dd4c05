"""What cannot be cut evenly, or not on a CPU: what each rank is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from diffusers import ContextParallelConfig
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn

import toma_fx
from tests.helpers import Attention
from tests.parallel.models import WORDS, flux, ltx, shard
from tests.parallel.ranks import Results
from tests.parallel.settings import OPTIONS


class Uneven(Attention):
    """Attention over the tokens of all ranks, of which each has another number."""

    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.counts = counts

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        hidden = self.norm(x)
        layers = (self.query, self.key, self.value)
        return x + self.out(self.attended(*(self.of_all(layer(hidden)) for layer in layers)))

    def of_all(self, x: Tensor) -> Tensor:
        """`[1, N, C]` to `[1, H / ranks, tokens of all ranks, D]`."""
        ranks, own, half = len(self.counts), x.shape[1], x.shape[2] // len(self.counts)
        parts = x.unflatten(-1, (ranks, half)).permute(2, 0, 1, 3).contiguous().flatten()
        received = [count * half for count in self.counts]
        given = funcol.all_to_all_single(parts, received, [own * half] * ranks, dist.group.WORLD)
        return funcol.wait_tensor(given).reshape(1, 1, -1, half)

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        half = query.shape[-1]
        whole = F.scaled_dot_product_attention(query, key, value).flatten()
        sizes = [count * half for count in self.counts]
        own = self.counts[dist.get_rank()]
        given = funcol.all_to_all_single(whole, [own * half] * 2, sizes, dist.group.WORLD)
        return funcol.wait_tensor(given).reshape(2, own, half).transpose(0, 1).reshape(1, own, -1)


def refused(rank: int, ranks: int) -> Results:
    """What diffusers cannot cut evenly, or not on a CPU, and a model of its own one level lower."""
    found: Results = {}
    made = flux(words=WORDS - 1)
    shard(made.model, ranks)
    found["plain"] = _error(lambda: made.model(**made.given))
    found["merged"] = _error(lambda: merged(made.model)(**made.given))
    made = flux(words=WORDS - 1)
    shard(made.model, ranks, ulysses_anything=True)
    torch._dynamo.reset()
    found["cut anyhow"] = _error(lambda: made.model(**made.given))
    compiled = torch.compile(made.model, backend="eager")
    found["cut anyhow and compiled"] = _error(lambda: compiled(**made.given))
    made = flux()
    made.model.enable_parallelism(config=ContextParallelConfig(ring_degree=ranks))
    found["ring"] = _error(lambda: made.model(**made.given))
    with attention_backend("_native_flash"):
        found["ring by flash"] = _error(lambda: made.model(**made.given))
    made = ltx(masked=True)
    shard(made.model, ranks)
    found["ltx with a mask"] = _error(lambda: made.model(**made.given))
    counts = [48, 16]
    model = Uneven(counts).eval()
    x = torch.randn(1, counts[rank], 16, generator=torch.Generator().manual_seed(rank))
    found["lower"] = merged(model)(x), model(x)
    found["reasons"] = toma_fx.last_report().notes
    return found


def _error(run: Callable[[], Any]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def merged(model: nn.Module) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend="toma", fullgraph=True, options=OPTIONS)
