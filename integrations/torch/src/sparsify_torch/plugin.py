"""Offer what this package adds to Sparsify."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def modifiers() -> Iterable[Entry]:
    return ()
