"""Offer the command that lists, explains, checks and scaffolds plugins."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def commands() -> Iterable[Entry]:
    return [Entry("plugins", "sparsify_plugin_kit.command:app", "List, explain, check or scaffold plugins")]
