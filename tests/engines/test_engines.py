"""Each adapter, on a stand-in of its engine: load, compile, steps."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.apart import OPTIONS, Denoiser, apart, picture, run
from tests.engines import stand_ins
from tests.engines.stand_ins import install, omni_config, server_args, xfuser_args
from tests.tiny import one_thread
from toma_fx import ConfigError, EngineError, reuse_stats
from toma_fx.engines import sglang, vllm_omni, xdit
from toma_fx.engines.wrapping import Method
from toma_fx.errors import PlainModelWarning, TomaWarning
from toma_fx.following import is_followed

__all__ = ["one_thread"]  # the fixture of these tests

ENGINES: dict[str, tuple[Any, Method, type]] = {
    "vllm_omni": (vllm_omni, vllm_omni.LOAD, stand_ins.DiffusionModelRunner),
    "sglang": (sglang, sglang.COMPILE, stand_ins.DenoisingStage),
    "xdit": (xdit, xdit.INITIALIZE, stand_ins.XFuserModel),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Dynamo as at the start; calls that nobody merges are not compiled by Inductor."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    default("eager")
    yield
    default(None)


def default(backend: str | None) -> None:
    if hasattr(torch.compiler, "set_default_backend"):
        torch.compiler.set_default_backend(backend)


def load_omni(owner: Any, **config: Any) -> Any:
    runner = owner(None, omni_config(**config), torch.device("cpu"))
    runner.load_model(load_format="default")
    return runner.pipeline.transformer


def load_sglang(owner: Any, **config: Any) -> Any:
    return owner(Denoiser(), server_args(**config)).transformer


def load_xdit(owner: Any, **config: Any) -> Any:
    model = owner(xfuser_args(**config))
    model.initialize({"num_inference_steps": 10})
    return model.pipe.transformer


LOADS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "vLLM-Omni, blocks": ("vllm_omni", load_omni, {}),
    "vLLM-Omni, whole": ("vllm_omni", load_omni, {"diffusion_compile_granularity": "full"}),
    "SGLang, whole": ("sglang", load_sglang, {}),
    "SGLang, blocks": ("sglang", load_sglang, {"regional_compile": True}),
    "xDiT, whole": ("xdit", load_xdit, {}),
    "xDiT, blocks": ("xdit", load_xdit, {"fully_shard_degree": 2}),
}


def switch_on(name: str, patch: pytest.MonkeyPatch, options: Any = OPTIONS) -> Any:
    """As a user does it, and the engine: the variable, and then its call of the entry point."""
    adapter, method, stand_in = ENGINES[name]
    owner = install(patch, method, stand_in)
    patch.setenv("TOMA_FX", json.dumps(options))
    if name == "xdit":
        adapter.enable(options)
    else:
        adapter.register()
    return owner


def by_hand(whole: bool) -> Denoiser:
    model = Denoiser()
    if whole:
        model.compile(backend="toma", options=OPTIONS)
        return model
    return apart(model)


@torch.no_grad()
@pytest.mark.parametrize("case", LOADS)
def test_an_engine_merges_as_by_hand(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, load, config = LOADS[case]
    expected = by_hand("whole" in case)
    wanted = [*run(expected, picture()), *run(expected, picture(1))]
    graphs, selections = counted("graphs_rewritten"), reuse_stats(expected).selections
    torch._dynamo.reset()
    model = load(switch_on(name, monkeypatch), **config)
    denoiser = getattr(model, "_orig_mod", model)
    warmed = reuse_stats(denoiser).selections  # xDiT has run two steps already
    found = [*run(model, picture()), *run(model, picture(1))]
    assert all(map(torch.equal, found, wanted))
    assert not torch.equal(found[0], Denoiser()(*picture()[0]))
    assert is_followed(denoiser)
    assert warmed == (name == "xdit")
    assert reuse_stats(denoiser).selections - warmed == selections == 8
    assert counted("graphs_rewritten") == 2 * graphs


def counted(name: str) -> int:
    return int(torch._dynamo.utils.counters["toma_fx"][name])


@torch.no_grad()
@pytest.mark.skipif(
    not hasattr(torch.compiler, "set_default_backend"), reason="plain calls would go to Inductor"
)
@pytest.mark.parametrize("case", LOADS)
def test_an_installed_package_changes_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, load, config = LOADS[case]
    adapter, method, stand_in = ENGINES[name]
    owner = install(monkeypatch, method, stand_in)
    monkeypatch.delenv("TOMA_FX", raising=False)
    if name != "xdit":
        adapter.register()
    assert getattr(owner, method.name) is vars(stand_in)[method.name]
    model = load(owner, **config)
    assert all(map(torch.equal, run(model, picture()), run(Denoiser(), picture())))
    assert not is_followed(getattr(model, "_orig_mod", model))
    assert not torch._dynamo.utils.counters["toma_fx"]


@torch.no_grad()
def test_only_what_the_engine_compiles_then_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = switch_on("vllm_omni", monkeypatch)
    runner = owner(None, omni_config(), torch.device("cpu"))
    runner.load_model()
    words = torch.randn(1, 64, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a text encoder is passed on silently
        runner.pipeline.encoder(words)
    assert (counted("graphs_passed_on"), counted("graphs_rewritten")) == (1, 0)
    later = nn.Linear(16, 16)
    assert torch.equal(torch.compile(later, backend="eager")(words), later(words))
    assert torch.compiler.get_default_backend() == "eager"


@torch.no_grad()
@pytest.mark.parametrize("case", ["vLLM-Omni, blocks", "SGLang, whole", "xDiT, blocks"])
def test_a_torch_without_default_backends(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default(None)
    monkeypatch.delattr(torch.compiler, "set_default_backend", raising=False)
    name, load, config = LOADS[case]
    plain = torch.compile
    model = load(switch_on(name, monkeypatch), **config)
    assert torch.compile is plain
    run(model, picture())
    assert counted("graphs_rewritten") == 1
    monkeypatch.undo()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"ratoi": 0.5}, "did you mean 'ratio'"), ({"ratio": 2}, "must lie in"), ([0.5], "object")],
)
def test_options_are_checked_at_the_door(
    name: str, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, method, stand_in = ENGINES[name]
    owner = install(monkeypatch, method, stand_in)
    monkeypatch.setenv("TOMA_FX", json.dumps(options))
    with pytest.raises(ConfigError, match=message):
        adapter.main() if name == "xdit" else adapter.register()
    assert getattr(owner, method.name) is vars(stand_in)[method.name]


def test_what_is_no_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMA_FX", "ratio=0.5")
    with pytest.raises(ConfigError, match="TOMA_FX is no JSON"):
        vllm_omni.register()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("without", ["class", "method", "module"])
def test_an_engine_that_has_changed_is_an_error(
    name: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, method, _ = ENGINES[name]
    if without != "module":
        install(monkeypatch, method, None if without == "class" else nn.Identity)
    with pytest.raises(EngineError, match=method.read):
        adapter.enable()


def test_a_model_of_xdit_that_compiles_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = switch_on("xdit", monkeypatch)
    del owner._compile_model
    with pytest.raises(EngineError, match=r"has no xFuserModel\._compile_model"):
        owner(xfuser_args()).initialize({})


def test_an_override_of_xdit_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = switch_on("xdit", monkeypatch)

    class Flux(owner):  # type: ignore[misc]
        def _compile_model(self, input_args: dict[str, Any]) -> None:
            self.pipe.transformer.compile()

    model = Flux(xfuser_args())
    model.initialize({})
    with torch.no_grad():
        run(model.pipe.transformer, picture(steps=2))
    assert counted("graphs_rewritten") == 1
    assert "_compile_model" not in vars(model)


PLAIN: dict[str, tuple[str, Callable[..., Any], dict[str, Any], str]] = {
    "vllm_omni": ("vllm_omni", load_omni, {"enforce_eager": True}, "without --enforce-eager"),
    "sglang": ("sglang", load_sglang, {"enable_torch_compile": False}, "--enable-torch-compile"),
    "graphs": ("sglang", load_sglang, {"enable_breakable_cuda_graph": True}, "CUDA graphs"),
    "xdit": ("xdit", load_xdit, {"use_torch_compile": False}, "--use_torch_compile"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_an_engine_that_compiles_nothing_is_told_of(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, load, config, message = PLAIN[case]
    owner = switch_on(name, monkeypatch)
    with pytest.warns(PlainModelWarning, match=message):
        load(owner, **config)


def test_a_pipeline_without_a_known_denoiser_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = switch_on("vllm_omni", monkeypatch)
    monkeypatch.setattr(stand_ins.Pipeline, "_dit_modules", ("dit",), raising=False)
    with pytest.warns(TomaWarning, match="has no dit to follow"):
        owner(None, omni_config(), torch.device("cpu")).load_model()


def test_a_dummy_load_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = switch_on("vllm_omni", monkeypatch)(None, omni_config(), torch.device("cpu"))
    runner.load_model(load_format="dummy")
    assert runner.pipeline is None


def test_the_latest_options_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = switch_on("sglang", monkeypatch)
    sglang.enable({**OPTIONS, "select_every": 1})
    model = load_sglang(owner)
    with torch.no_grad():
        run(model, picture())
    assert reuse_stats(model).selections == 10


def first(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return run(model, picture(steps=1))[0]


def test_an_engine_may_name_a_backend_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = switch_on("sglang", monkeypatch)
    plain = stand_ins.DenoisingStage._maybe_torch_compile
    assert owner._maybe_torch_compile.__wrapped__ is plain
    model = Denoiser()
    monkeypatch.setattr(model, "compile", lambda **_: nn.Module.compile(model, backend="eager"))
    owner(model, server_args())
    assert torch.equal(first(model), first(Denoiser()))
    assert not torch._dynamo.utils.counters["toma_fx"]
