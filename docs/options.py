"""Writes `options.md` from the docstrings of the configurations.

    python -m docs.options

The docstrings are what `help()` and editors show; a test fails where the page says anything else.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from docstring_parser import Docstring, DocstringStyle, parse

from toma_fx import TomaConfig
from toma_fx.diffusers import TokenMergingConfig

PAGE = Path(__file__).with_suffix(".md")

_HEAD = """\
# Options

<!-- Written by `python -m docs.options` from the docstrings of the configurations: edit those. -->

[README](../README.md) · [Pictures](pictures.md#the-defaults) ·
[Pipelines of diffusers](diffusers.md)

The fields of `TomaConfig`, and of `TokenMergingConfig`, which adds what a pipeline's steps do
(`merge_steps`, `rest_every`, `dense_steps`).
Every field has a default, every value is checked, and an unknown name is an error that names the
closest one.

```python
import torch, toma_fx
from toma_fx.diffusers import TokenMergingConfig, apply

config = toma_fx.TomaConfig(ratio=0.5, scope="block")
print(toma_fx.explain(pipe.unet, config=config, **inputs))
fast = torch.compile(pipe.unet, backend="toma", options={"ratio": 0.5, "max_autotune": True})

apply(pipe, TokenMergingConfig(ratio=0.5, merge_steps=(0.2, 1.0)))
```

In `options` of `torch.compile` they stand beside Inductor's own (`max_autotune` above); on the
command line `--set NAME=VALUE` sets one. A value out of its range raises `ConfigError`, which names
the field and the range.

Defaults are those of ToMA's public code ([arXiv 2509.10918](https://arxiv.org/abs/2509.10918),
section 4), but for the schedule; [Pictures](pictures.md#the-defaults) says what was measured.
"""


def page() -> str:
    """The text of `options.md`: a table of all fields, then a section for each."""
    fields = [*_fields(TomaConfig), *_fields(TokenMergingConfig)]
    table = ["| option | default | |", "|---|---|---|"]
    for name, value, text in fields:
        table.append(f"| [`{name}`](#{name}) | `{value}` | {_gist(text)} |")
    sections = [
        f"## {name}\n\n*Default* `{value}`\n\n{_sentence(text)}\n" for name, value, text in fields
    ]
    return "\n".join([_HEAD, *table, "", *sections, _pipelines(), _presets()])


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


def _fields(config: Any) -> list[tuple[str, str, str]]:
    """Name, default and description of each field that the class itself documents.

    Raises:
        ValueError: a documented name is no field, or a field of its own is not documented.
    """
    described = {entry.arg_name: entry.description or "" for entry in _parsed(config).params}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    own = [name for name in defaults if name in config.__annotations__]
    if differing := sorted(set(own) ^ set(described)):
        raise ValueError(f"{config.__name__}: {differing} are no fields, or not documented")
    return [(name, _literal(defaults[name]), text) for name, text in described.items()]


def _presets() -> str:
    """The schedules that have a name."""
    rows = ["## Schedules of the paper", "", "| | |", "|---|---|"]
    for name in ("sdxl_paper", "flux_paper"):
        summary = _parsed(getattr(TomaConfig, name)).short_description
        rows.append(f"| `TomaConfig.{name}()` | {summary} |")
    return "\n".join([*rows, ""])


def _pipelines() -> str:
    return f"## In a pipeline\n\n{_parsed(TokenMergingConfig).long_description}\n"


def _parsed(documented: Any) -> Docstring:
    return parse(inspect.getdoc(documented) or "", style=DocstringStyle.GOOGLE)


def _sentence(text: str) -> str:
    """A description as a sentence: it follows a colon in the docstring, and a heading here."""
    return text[0].upper() + text[1:] if text[0].isascii() else text  # τ stays small


def _gist(text: str) -> str:
    """The first clause of a description."""
    return re.split(r"[.;:](?=\s)", " ".join(text.split()))[0].rstrip(".")


def _literal(value: object) -> str:
    """A default as one writes it, with double quotes."""
    return repr(value).replace("'", '"')


if __name__ == "__main__":
    main()
