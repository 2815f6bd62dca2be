"""Offer the server, and the writer of repositories for servers that scale."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def commands() -> Iterable[Entry]:
    return (
        Entry("serve", "sparsify_serve.command:app", "Serve deployments over HTTP (Open Inference Protocol)"),
        Entry("deploy", "sparsify_serve.deploy:app", "Write a model repository for Triton or OpenVINO Model Server"),
    )
