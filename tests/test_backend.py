"""The door: options, inner backends, refusals, and the plain model where nothing can be merged."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import toma_fx
from tests.models import sdxl, sdxl_inputs
from toma_fx import AutogradError, ConfigError, last_report, toma_backend


class Mlp(nn.Module):
    """One feed-forward on a folded picture: the smallest model with a region."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, picture: Tensor) -> Tensor:
        hidden = picture.flatten(2).transpose(1, 2)
        hidden = hidden + self.down(torch.relu(self.up(self.norm(hidden))))
        return hidden.transpose(1, 2).reshape(picture.shape)


@pytest.fixture
def picture() -> Tensor:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return torch.randn(1, 16, 16, 16)


def run(model: nn.Module, *args: Any, **options: Any) -> Any:
    chosen = {"inner_backend": "eager", "regions": "all", **options}
    with torch.no_grad():
        return torch.compile(model, backend="toma", fullgraph=True, options=chosen)(*args)


def cause(caught: pytest.ExceptionInfo[BackendCompilerFailed]) -> BaseException:
    return caught.value.inner_exception


def test_by_function_and_by_name_are_one_backend(picture: Tensor) -> None:
    model = Mlp()
    by_name = run(model, picture)
    assert len(last_report().merged) == 1
    torch._dynamo.reset()
    options = {"inner_backend": "eager", "regions": "all"}
    with torch.no_grad():
        by_function = torch.compile(model, backend=toma_backend, options=options)(picture)
        plain = model(picture)
    assert torch.equal(by_name, by_function)
    assert not torch.allclose(by_name, plain, atol=1e-4)


def test_inductor_options_and_mode_pass_through(picture: Tensor) -> None:
    model = Mlp()
    expected = run(model, picture)
    torch._dynamo.reset()
    options = {"max_fusion_size": 8, "ratio": 0.5, "regions": "all"}
    by_mode = functools.partial(toma_backend, options={"regions": "all"})
    with torch.no_grad():
        compiled = torch.compile(model, backend=by_mode, mode="reduce-overhead")
        assert torch.allclose(compiled(picture), expected, atol=1e-5)
        compiled = torch.compile(model, backend="toma", options=options)
        assert torch.allclose(compiled(picture), expected, atol=1e-5)


def test_inductor_options_are_refused_for_another_backend(picture: Tensor) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        run(Mlp(), picture, max_fusion_size=8)
    assert isinstance(cause(caught), ConfigError)
    assert "max_fusion_size" in str(cause(caught))


def test_an_unknown_option_names_the_closest(picture: Tensor) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        run(Mlp(), picture, ratoi=0.5)
    assert isinstance(cause(caught), ConfigError)
    assert "'ratio'" in str(cause(caught))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_errors_reach_an_except_for_them(picture: Tensor, fullgraph: bool) -> None:
    model, options = Mlp(), {"ratoi": 0.5}
    misspelt = torch.compile(model, backend="toma", fullgraph=fullgraph, options=options)
    with torch.no_grad(), pytest.raises(ConfigError) as caught:
        misspelt(picture)
    assert str(caught.value) == "unknown option 'ratoi'; did you mean 'ratio'?"
    assert isinstance(caught.value, ValueError)
    assert type(caught.value).__name__ == "ConfigError"
    with pytest.raises(AutogradError, match="token merging is for inference") as refused:
        torch.compile(model, backend="toma", fullgraph=fullgraph)(picture)
    assert "toma_backend" in [entry.name for entry in refused.traceback]
    assert "_call_user_compiler" not in [entry.name for entry in refused.traceback]


def test_gradients_are_refused(picture: Tensor) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(Mlp(), backend="toma")(picture)
    assert isinstance(cause(caught), AutogradError)
    assert "torch.no_grad()" in str(cause(caught))


def test_inference_mode_is_accepted(picture: Tensor) -> None:
    model = Mlp()
    with torch.inference_mode():
        options = {"inner_backend": "eager", "regions": "all"}
        result = torch.compile(model, backend="toma", options=options)(picture)
    assert torch.equal(result, run(model, picture))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        return self.layer(picture)


class Rolled(Mlp):
    """Tokens are shifted against each other inside the MLP."""

    def forward(self, picture: Tensor) -> Tensor:
        hidden = picture.flatten(2).transpose(1, 2)
        inner = torch.relu(self.up(self.norm(hidden))).roll(1, dims=1)
        return hidden + self.down(inner)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Convolution(), "no attention or MLP region found"), (Rolled(), "aten.roll")],
)
def test_a_model_without_regions_runs_plain_after_one_warning(
    picture: Tensor, model: nn.Module, reason: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(model, picture)
        run(model, picture)
    mine = [str(w.message) for w in caught if "toma_fx" in str(w.message)]
    assert len(mine) == 1
    assert reason in mine[0]
    with torch.no_grad():
        assert torch.equal(result, model(picture))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_activations_that_are_not_floating_point_are_refused(
    picture: Tensor, dtype: torch.dtype
) -> None:
    class Odd(nn.Module):
        def forward(self, picture: Tensor, up: Tensor, down: Tensor) -> Tensor:
            hidden = picture.flatten(2).transpose(1, 2)
            inner = nn.functional.linear(nn.functional.linear(hidden, up) * 2, down)
            return hidden + inner

    weights = torch.ones(32, 16).to(dtype), torch.ones(16, 32).to(dtype)
    odd = (picture * 4).to(dtype)
    with pytest.warns(UserWarning, match="not floating point"):
        result = run(Odd(), odd, *weights)
    assert torch.equal(result, Odd()(odd, *weights))
    assert [region.status for region in last_report().regions] == ["refused"]


def test_rewrite_leaves_its_graph_alone(picture: Tensor) -> None:
    graphs = []

    def keep(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        before = gm.code, [str(node) for node in gm.graph.nodes]
        result = toma_fx.rewrite(gm, inputs, toma_fx.TomaConfig(ratio=0.75, regions="all"))
        graphs.append((before, (gm.code, [str(node) for node in gm.graph.nodes]), result))
        return result.graph_module.forward

    model = Mlp()
    with torch.no_grad():
        result = torch.compile(model, backend=keep, fullgraph=True)(picture)
    before, after, rewritten = graphs[0]
    assert before == after
    assert rewritten.report.merged[0].merged_tokens == 64
    torch._dynamo.reset()
    assert torch.equal(result, run(model, picture, ratio=0.75))


def test_dynamic_shapes_equal_static_ones() -> None:
    """Epsilons and dropout rates arrive as symbolic floats here."""
    model = sdxl()
    inputs = sdxl_inputs(model, 32, 32)
    results = []
    for dynamic in (True, False):
        torch._dynamo.reset()
        options = {"inner_backend": "eager", "regions": "all"}
        compiled = torch.compile(model, backend="toma", dynamic=dynamic, options=options)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            results.append(compiled(**inputs)[0])
        assert len(last_report().merged) == 12
    assert torch.allclose(*results, rtol=1e-4, atol=1e-5)
