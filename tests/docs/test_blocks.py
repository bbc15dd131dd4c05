"""Every Python block of the documentation runs, one page after the other, as written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.docs.pages import OTHERS, PAGES, fences, name
from tests.docs.stage import namespace, quick_inductor
from toma_fx import last_report

WITH_PYTHON = [
    page for page in (*PAGES, *OTHERS) if any(f.language == "python" for f in fences(page))
]
MERGING = {"README.md", "CONTRIBUTING.md", "docs/diffusers.md", "docs/ahead-of-time.md"}


@pytest.fixture(autouse=True)
def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, a folder to write to, and compilers that take seconds instead of minutes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", quick_inductor)
    torch._dynamo.reset()
    quick = torch._inductor.config.patch("aot_inductor.compile_wrapper_opt_level", "O0")
    with quick, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    document = Document.parse(str(page), PythonCodeBlockParser())
    document.namespace.update(namespace(name(page)))
    examples = list(document)
    assert len(examples) >= sum(fence.language == "python" for fence in fences(page))
    for example in examples:
        example.evaluate()
    if name(page) in MERGING:
        assert last_report().merged
