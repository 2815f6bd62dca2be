"""Offer the commands that list use cases and list, explain, check and scaffold plugins."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def commands() -> Iterable[Entry]:
    return [
        Entry("plugins", "sparsify_plugin_kit.command:app", "List, explain, check or scaffold plugins"),
        Entry("use-cases", "sparsify_plugin_kit.use_cases:app", "List use cases, their aliases and metrics"),
    ]
