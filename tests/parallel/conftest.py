"""One group of ranks runs what all tests of this folder ask for by default."""

from __future__ import annotations

import pytest

from tests.parallel import cases
from tests.parallel.ranks import Results, run_ranks


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What each of two ranks found."""
    return run_ranks(cases.quick, 2, tmp_path_factory.mktemp("quick"))
