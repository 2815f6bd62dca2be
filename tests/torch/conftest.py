"""Everything here needs torch; where it is not installed the tests skip, saying so."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
