"""Shell blocks name commands that exist; what is quick is run, and prints what the page says."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from tests.docs.pages import PAGES, ROOT, anchors, fences, name, slug
from toma_fx.cli import main as cli

LANGUAGES = ("python", "sh", "console", "mermaid")
OTHERS = ("accelerate", "cmake", "export", "pip", "sglang", "torchrun", "vllm")
PROMPT = "$ "
PAGE = ROOT / "docs" / "command-line.md"


def sessions(page: Path) -> list[tuple[str, str]]:
    """Commands of a page's `console` blocks, each with what it printed."""
    texts = [fence.text for fence in fences(page) if fence.language == "console"]
    parts = [re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)[1:] for text in texts]
    return [pair for part in parts for pair in zip(part[::2], part[1::2], strict=True)]


def quick(command: str, printed: str) -> bool:
    """Errors at the door, and small models on the meta device."""
    return printed.startswith("toma-fx: ") or command.startswith("toma-fx explain flux-small")


QUICK = [(command, printed) for command, printed in sessions(PAGE) if quick(command, printed)]


def test_errors_and_tables_are_among_what_is_run() -> None:
    errors = [printed for _, printed in QUICK if printed.startswith("toma-fx: ")]
    assert len(errors) >= 3
    assert len(QUICK) > len(errors)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is(page: Path) -> None:
    blocks = fences(page)
    assert [block for block in blocks if block.language not in LANGUAGES] == []
    output = [block for block in blocks if block.language == "console"]
    assert [block for block in output if not block.text.startswith(PROMPT)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text))
    assert [module for module in modules if find_spec(module) is None] == []
    targets = re.findall(r"^(?:make|`make) (\w+)", text, flags=re.MULTILINE)
    known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(targets) <= set(known)


def test_shell_blocks_hold_known_commands() -> None:
    blocks = [fence.text for page in PAGES for fence in fences(page) if fence.language == "sh"]
    lines = [line for text in blocks for line in text.replace("\\\n", "").splitlines()]
    first = {shlex.split(line, comments=True)[0] for line in lines if line.strip()}
    assert first <= {"make", "python", "toma-fx", *OTHERS}


@pytest.mark.parametrize("command", [command for page in PAGES for command, _ in sessions(page)])
def test_every_session_is_of_this_command_line(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "toma-fx"
    given, rest = cli._parser().parse_known_args(arguments)
    assert not rest or given.command == "demo"


@pytest.mark.parametrize("command", [*cli._COMMANDS, "demo"])
def test_every_command_is_described(command: str) -> None:
    assert any(slug(f"toma-fx {command}") in anchor for anchor in anchors(PAGE))


@pytest.mark.parametrize(("command", "printed"), QUICK, ids=[command for command, _ in QUICK])
def test_what_is_quick_prints_what_the_page_says(
    command: str,
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken" / "config.json"
    broken.parent.mkdir()
    broken.write_text("{broken}")
    monkeypatch.chdir(tmp_path)
    cli.main(shlex.split(command)[1:])
    captured = capsys.readouterr()
    assert _stripped(captured.out or captured.err) == _stripped(printed)


def _stripped(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
