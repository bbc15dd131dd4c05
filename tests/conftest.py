"""One thread a test process: two workers with two threads each wait for one another.

Tracing makes millions of objects that live for a test, beside the millions of the libraries:
looking through all of them is a tenth of the time of the tests.
"""

import gc
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent

torch.set_num_threads(1)
torch._dynamo.config.run_gc_after_compile = False
gc.set_threshold(50_000, 10, 10)


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks, behind the folders' own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what they trace and compile: one worker runs them."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.relative_to(FOLDER).as_posix()))
