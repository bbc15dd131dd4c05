"""What is wrong is said at the door, and leaves everything as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.diffusers.door import EAGER, Fold, config, fresh, picture
from tests.pipelines import PIPES
from toma_fx import AutogradError, ConfigError, PipelineError, TomaConfig
from toma_fx.diffusers import (
    TokenMergingConfig,
    apply,
    disable,
    enable,
    is_applied,
    remove,
    status,
)

__all__ = ["fresh"]  # the fixture of these tests

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"options": {"ratoi": 0.5}}, "unknown option 'ratoi'; did you mean 'ratio'"),
    ({"options": {"ratio": 1.5}}, "ratio must lie in"),
    ({"options": {"device": "h2000"}}, "did you mean 'h200'"),
    ({"options": {"inner_backend": "inductro"}}, "did you mean 'inductor'"),
    ({"options": {"inner_backend": "toma"}}, "would merge it again"),
    ({"options": {"inner_backend": 3}}, "inner_backend must be one of"),
    ({"options": {"inner_backend": "eager", "max_fusion_size": 8}}, "belong to Inductor"),
    ({"options": "ratio"}, "options must be a dictionary"),
    ({"mode": "max-autotun"}, "did you mean 'max-autotune'"),
    ({"mode": "max-autotune", "options": {"inner_backend": "eager"}}, "mode belong to Inductor"),
    ({"full_graph": True}, "did you mean 'fullgraph'"),
    ({"fullgraph": "yes"}, "fullgraph must be True or False"),
    ({"recompile_limit": 0}, "recompile_limit must be a whole number"),
    ({"recompile_limt": 9}, "did you mean 'recompile_limit'"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_options_fail_at_the_door_and_change_nothing(given: dict[str, Any], said: str) -> None:
    model = Fold()
    with pytest.raises(ConfigError, match=said):
        apply(model, config(), **given)
    assert not is_applied(model)
    apply(model, config(), **EAGER)
    expected = model(picture())
    for function in (apply, enable):
        with pytest.raises(ConfigError, match=said):
            function(model, config(), **given)
        assert is_applied(model)
    assert torch.equal(model(picture()), expected)
    assert status(model).merged


def test_options_of_the_config_may_stand_among_those_of_the_compiler() -> None:
    model = Fold()
    apply(model, config(), options={"inner_backend": "eager", "ratio": 0.75})
    model(picture())
    other = Fold()
    apply(other, config(ratio=0.75), **EAGER)
    assert torch.equal(model(picture()), other(picture()))


def test_gradients_are_refused_by_name() -> None:
    model = Fold()
    apply(model, config(), **EAGER)
    with torch.enable_grad(), pytest.raises(AutogradError, match=r"torch.no_grad\(\)"):
        model(picture())
    assert model(picture()).shape == picture().shape


def test_all_of_a_list_or_none() -> None:
    models = [Fold(), Fold()]
    apply(models[1], config(), **EAGER)
    with pytest.raises(PipelineError, match="applied to model already"):
        apply(models, config(), **EAGER)
    assert [is_applied(model) for model in models] == [False, True]
    with pytest.raises(PipelineError, match="not applied to this Fold"):
        remove(models)
    assert is_applied(models[1])
    assert enable(models, config(), **EAGER) is models
    assert is_applied(models)
    assert not is_applied(disable(models))
    with pytest.raises(PipelineError, match="no pipeline in the list"):
        apply([])


def test_what_cannot_be_applied_is_said() -> None:
    pipe = PIPES["flux"]().pipeline
    with pytest.raises(PipelineError, match="object has no unet and no transformer"):
        apply(object())
    with pytest.raises(PipelineError, match="not applied to this FluxPipeline"):
        remove(pipe)
    assert str(status(pipe)) == "token merging is not applied\n"
    apply(pipe)
    with pytest.raises(PipelineError, match="applied to transformer already"):
        apply(pipe)
    with pytest.raises(PipelineError, match="applied to model already"):
        apply(pipe.transformer)
    remove(pipe)
    pipe.transformer.compile(backend="eager")
    for function in (apply, enable):
        with pytest.raises(PipelineError, match="compiled already"):
            function(pipe)
        with pytest.raises(PipelineError, match="compiled already"):
            function(torch.compile(nn.Linear(2, 2), backend="eager"))


def test_the_model_and_its_pipeline() -> None:
    """Applied to the model, its pipelines are merged; either of them may undo it."""
    pipe = PIPES["flux"]().pipeline
    apply(pipe.transformer)
    assert is_applied(pipe)
    with pytest.raises(PipelineError, match="applied to transformer already"):
        apply(pipe)
    enable(pipe, config(merge_steps=(0.0, 0.5)))
    assert is_applied(pipe)
    remove(pipe.transformer)
    assert not is_applied(pipe)
    apply(pipe.transformer)
    assert not is_applied(remove(pipe).transformer)


def test_fields_that_do_not_exist_are_said() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="merge_steps needs a pipeline"):
        apply(model, TokenMergingConfig(merge_steps=(0.0, 0.5)))
    with pytest.raises(ConfigError, match="config must be"):
        apply(model, {"ratio": 0.5})  # type: ignore[arg-type]
    for wrong in ((0.5, 0.5), (0.8, 0.2), (-0.1, 1), (0, 1.1), (0,), "ab", 3, (True, 1)):
        with pytest.raises(ConfigError, match="merge_steps must be"):
            TokenMergingConfig(merge_steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no field 'ratios'; did you mean 'ratio'"):
        TokenMergingConfig(ratios=0.5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no field 'merge_step'; did you mean 'merge_steps'"):
        TokenMergingConfig(merge_step=(0.0, 0.5))  # type: ignore[call-arg]
    assert not is_applied(model)
    assert TokenMergingConfig(ratio=0.25) != TomaConfig(ratio=0.25)
