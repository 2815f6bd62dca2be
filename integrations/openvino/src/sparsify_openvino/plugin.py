"""Offer OpenVINO as a runtime."""

from __future__ import annotations

from collections.abc import Iterable

from sparsify import Entry, hookimpl


@hookimpl
def runtimes() -> Iterable[Entry]:
    return [
        Entry(
            "openvino",
            target="sparsify_openvino.runtime:open_session",
            summary="OpenVINO on the CPU; float models in bf16 where the CPU has it",
            requires=("openvino",),
            accepts=("onnx",),
        )
    ]
