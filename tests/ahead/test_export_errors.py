"""What cannot be exported, loaded or called says so in one typed error; nothing is left behind."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import toma_fx
from tests.ahead.conftest import Built
from tests.ahead.small import CONFIG, Small, small_call
from toma_fx import CallError, ConfigError, ExportError, MismatchError, PackageError
from toma_fx.ahead import package as package_file


class Branches(Small):
    def forward(self, sample: Tensor, timestep: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        found = super().forward(sample, timestep, scale)
        return found if found["noise"].sum() > 0 else {"noise": sample}


class Breaks(Small):
    """Leaves the graph: numpy in the middle."""

    def forward(self, sample: Tensor, timestep: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return super().forward(torch.tensor(sample.numpy().copy()), timestep, scale)


class Scaled(nn.Module):
    """Nothing to merge."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample * timestep.view(-1, 1)


@pytest.mark.parametrize("model", [Branches(), Breaks()], ids=["branches", "breaks"])
def test_a_model_that_is_no_single_graph(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"cannot trace {type(model).__name__} as one graph"):
        toma_fx.export(model, (), small_call(), path=tmp_path / "model.pt2", config=CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"sample": torch.zeros(1, 4, 8, 8)}, "cannot be called so: missing"),
        ({**small_call(), "scale": object()}, "scale is a object"),
    ],
)
def test_arguments_that_cannot_be_exported(
    call: dict[str, Any], error: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=error):
        toma_fx.export(Small(), (), call, path=tmp_path / "model.pt2", config=CONFIG)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"path": "model.zip"}, "ends in .pt2"),
        ({"path": "nowhere/model.pt2"}, "must be a folder"),
        ({"compile_options": {"max_autotun": True}}, "did you mean 'max_autotune'"),
    ],
)
def test_options_are_checked_before_the_work(
    changes: dict[str, Any], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=error):
        toma_fx.export(Small(), (), small_call(), **{"path": "model.pt2", **changes})


def test_dynamic_sizes_are_refused_where_something_merges(tmp_path: Path) -> None:
    shapes = {"sample": {0: Dim("items", min=2, max=8)}, "timestep": {0: Dim("items")}}
    call = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.ones(2)}
    options = {"path": tmp_path / "model.pt2", "config": CONFIG, "dynamic_shapes": shapes}
    shapes["timestep"][0] = shapes["sample"][0]
    with pytest.raises(ExportError, match="axis 0 of sample is dynamic"):
        toma_fx.export(Small(), (), call, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_compile_leaves_the_old_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of registers\nand more")

    path = tmp_path / "model.pt2"
    path.write_text("the old one")
    monkeypatch.setattr(torch._inductor, "aot_compile", fails)
    with pytest.raises(ExportError, match=r"AOTInductor cannot compile.*out of registers$"):
        toma_fx.export(Small(), (), small_call(), path=path, config=CONFIG)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    with pytest.raises(ExportError, match=r"install torch 2\.13 or newer"):
        toma_fx.export(Small(), (), small_call(), path=tmp_path / "m.pt2", config=CONFIG)


def test_nothing_to_merge_is_the_plain_model_and_may_be_dynamic(tmp_path: Path) -> None:
    items = Dim("items", min=2, max=8)
    path = tmp_path / "model.pt2"
    shapes = {"sample": {0: items}, "timestep": {0: items}}
    call = torch.randn(2, 4), torch.ones(2)
    with pytest.warns(UserWarning, match="merged nothing"):
        toma_fx.export(Scaled(), call, path=path, dynamic_shapes=shapes)
    package = toma_fx.load(path)
    call = torch.randn(5, 4), torch.arange(5.0)
    torch.testing.assert_close(package(*call), Scaled()(*call))
    package.reset()
    assert package.stats() == toma_fx.ReuseStats()


def test_files_that_are_no_packages(small_package: Built, tmp_path: Path) -> None:
    whole = small_package.path.read_bytes()
    cut, text, foreign = (tmp_path / f"{name}.pt2" for name in ("cut", "text", "foreign"))
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("no archive")
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("foreign/data/aotinductor/model/a.so", b"")
    for path, error in ((cut, "cut short"), (text, "no package"), (foreign, "was not written by")):
        with pytest.raises(PackageError, match=error):
            toma_fx.load(path)
    with pytest.raises(FileNotFoundError, match="is no file"):
        toma_fx.load(tmp_path / "nothing.pt2")


def altered(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A package whose description is another; what native code it holds is left out."""
    description = package_file.read_description(source)
    change(description)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("model/extra/toma_fx.json", json.dumps(description))
    return target


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d["versions"].update(torch="2.9.1"), r"built with torch 2\.9\.1, this is"),
        (lambda d: d["machine"].update(machine="riscv64"), "built for machine 'riscv64'"),
        (lambda d: d["machine"].update(instructions="AVX4096"), "with AVX4096, which this one"),
    ],
)
def test_packages_of_another_machine(
    change: Callable[[dict[str, Any]], None], error: str, small_package: Built, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match=error):
        toma_fx.load(altered(small_package.path, tmp_path / "other.pt2", change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_package_for_cuda_where_there_is_none(small_package: Built, tmp_path: Path) -> None:
    path = altered(small_package.path, tmp_path / "a.pt2", lambda d: d.update(device="cuda"))
    with pytest.raises(MismatchError, match="built for cuda"):
        toma_fx.load(path)


def test_a_later_format_and_missing_code(small_package: Built, tmp_path: Path) -> None:
    path = altered(small_package.path, tmp_path / "later.pt2", lambda d: d.update(format=99))
    with pytest.raises(PackageError, match="has format 99"):
        toma_fx.load(path)
    path = altered(small_package.path, tmp_path / "empty.pt2", lambda d: d.update(members={}))
    with pytest.raises(PackageError, match="cannot be loaded"):
        toma_fx.load(path)


def library_of(path: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        libraries = [member for member in archive.infolist() if member.filename.endswith(".so")]
    return libraries[0]


def test_a_damaged_library_is_never_loaded(small_package: Built, tmp_path: Path) -> None:
    """4 KiB of it are overwritten, as by a disk that fails."""
    path, library = tmp_path / "damaged.pt2", library_of(small_package.path)
    contents = bytearray(small_package.path.read_bytes())
    place = library.header_offset + library.file_size // 2
    contents[place : place + 4096] = bytes(4096)
    path.write_bytes(contents)
    with pytest.raises(PackageError, match=rf"{re.escape(library.filename)} is damaged"):
        toma_fx.load(path)


@pytest.mark.parametrize("problem", ["is missing", "was added to it", "is damaged"])
def test_every_member_is_the_one_that_was_exported(
    problem: str, small_package: Built, tmp_path: Path
) -> None:
    """Also where the archive as such is sound."""
    path, library = tmp_path / "other.pt2", library_of(small_package.path).filename
    name = "model/extra/more.txt" if problem == "was added to it" else library
    with zipfile.ZipFile(small_package.path) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            if member != library or problem != "is missing":
                more = b"x" if member == library and problem == "is damaged" else b""
                new.writestr(member, old.read(member) + more)
        if problem == "was added to it":
            new.writestr(name, "more")
    with pytest.raises(PackageError, match=f"{re.escape(name)} {problem}"):
        toma_fx.load(path)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sample": torch.zeros(1, 4, 16, 16)}, r"sample is float32 \[1, 4, 16, 16\] on cpu, not"),
        ({"sample": torch.zeros(1, 4, 8, 8).double()}, "sample is float64"),
        ({"timestep": 3.0}, "timestep is 3.0, not float32"),
        ({"scale": 2.0}, "scale was not given when the model was exported"),
        ({"other": 1}, "cannot be called so.*other"),
    ],
)
def test_calls_that_do_not_fit(
    changes: dict[str, Any], error: str, small: toma_fx.LoadedModel
) -> None:
    with pytest.raises(CallError, match=error):
        small(**{**small_call(), **changes})
    assert small(**small_call(), scale=1.0)["noise"].shape == (1, 4, 8, 8)
    assert small.stats().steps == 1


def test_a_refusal_names_every_entry(small: toma_fx.LoadedModel) -> None:
    with pytest.raises(CallError, match=r"model: sample is .* \[1, 4, 8, 8\].*; model_2: sample"):
        small(torch.zeros(1, 4, 4, 4), torch.ones(1))


def test_a_step_that_fails_forgets_its_plans(
    small: toma_fx.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(**small_call())
    runner = small._runners[0]

    class Fails:
        def run(self, inputs: list[Tensor]) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_loader", Fails())
        with pytest.raises(KeyboardInterrupt):
            small(**small_call(step=1))
    small(**small_call(step=2))
    assert small.stats().misses["reset"] == 1
