"""Keep what the model as it came gives: every candidate is measured beside it, over the same batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsify.contracts import Array, Arrays, Session

OUTPUT_BYTES = 128 << 20  # a classifier's or an encoder's outputs fit many times over; segmentation maps are run again


@dataclass
class Outputs:
    """Hold one model's outputs by the bytes of their inputs; `room` is what may still be added."""

    held: dict[bytes, dict[str, Array]] = field(default_factory=dict)
    room: int = OUTPUT_BYTES

    def add(self, key: bytes, outputs: dict[str, Array]) -> None:
        """Keep a batch's outputs where there is room."""
        size = sum(array.nbytes for array in outputs.values() if hasattr(array, "nbytes"))
        if size <= self.room:
            self.held[key], self.room = outputs, self.room - size


@dataclass
class Remembering:
    """Run a model on batches that it has not met, and open it only for one."""

    open_session: Callable[[], Session]
    outputs: Outputs
    session: Session | None = None

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Give the outputs of a batch."""
        key = digest(inputs)
        if key not in self.outputs.held:
            self.session = self.session or self.open_session()
            found = self.session.run(inputs)
            self.outputs.add(key, found)
            return found
        return self.outputs.held[key]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Tell what the runtime knows of the model."""
        self.session = self.session or self.open_session()
        return self.session.facts

    def close(self) -> None:
        """Close the model, where it was opened."""
        if self.session is not None:
            self.session.close()


def digest(inputs: Arrays) -> bytes:
    """Return a hash of names, types, shapes and values."""
    import numpy as np

    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        hashed.update(f"{name} {inputs[name].dtype} {inputs[name].shape} ".encode())
        hashed.update(np.ascontiguousarray(inputs[name]).data)
    return hashed.digest()
