"""Everything here needs torch; where it is not installed the tests skip, saying so."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from sparsify import search

from tests.torch.brief import briefly

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "time_interleaved", briefly)
