"""Every preset is the model that it names, at the sizes that are known of it."""

from __future__ import annotations

import pytest
import torch

from toma_fx.cli.inputs import inputs_for
from toma_fx.cli.presets import PRESETS, build
from toma_fx.errors import ModelError

BILLIONS = {
    "sdxl": 2.57,
    "flux-dev": 11.9,
    "sd15": 0.86,
    "sd21": 0.866,
    "sd35-medium": 2.24,
    "sd35-large": 8.06,
}
META = torch.device("meta")


@pytest.mark.parametrize("name", list(BILLIONS))
def test_parameters_of_the_public_models(name: str) -> None:
    model = build(PRESETS[name], META, torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert count == pytest.approx(BILLIONS[name], rel=0.02)


@pytest.mark.parametrize("name", ["sdxl-small", "flux-small"])
def test_small_presets_run(name: str) -> None:
    model = build(PRESETS[name], torch.device("cpu"), torch.float32)
    inputs = inputs_for(model, 64, 128, 1)
    with torch.no_grad():
        result = model(**inputs)[0]
    first = inputs["sample"] if "sample" in inputs else inputs["hidden_states"]
    assert result.shape == first.shape


def test_the_position_table_of_sd3_ends() -> None:
    model = build(PRESETS["sd35-large"], META, torch.bfloat16)
    with pytest.raises(ModelError, match="ends at 3072 pixels a side"):
        inputs_for(model, 4096, 1024)
