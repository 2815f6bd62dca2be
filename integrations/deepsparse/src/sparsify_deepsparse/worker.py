"""Run one model in DeepSparse, asked over a pipe; needs DeepSparse and NumPy, and nothing of Sparsify.

A message is 8 bytes of length, a JSON header, and the bytes of the arrays that the header lists. Asked with inputs, it
answers with outputs; asked without any, with what it knows of the model; `error` in an answer is DeepSparse's reason.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import IO, Any

import numpy as np

Arrays = dict[str, "np.ndarray[Any, Any]"]
LENGTH = struct.Struct("<q")


def send(stream: IO[bytes], header: dict[str, Any], arrays: Arrays) -> None:
    """Write one message."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": listed}).encode()
    stream.write(LENGTH.pack(len(text)) + text)
    for array in arrays.values():
        stream.write(array.data.cast("B") if array.size else b"")
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], Arrays] | None:
    """Read one message; None at the end of the stream."""
    start = stream.read(LENGTH.size)
    if len(start) < LENGTH.size:
        return None
    text = stream.read(LENGTH.unpack(start)[0])
    if len(text) < LENGTH.unpack(start)[0]:
        return None
    header = json.loads(text)
    arrays: Arrays = {}
    for name, dtype, shape in header.pop("arrays"):
        arrays[name] = np.empty(shape, dtype)
        if arrays[name].size:
            view, filled = arrays[name].data.cast("B"), 0
            while filled < len(view):
                count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
                if not count:
                    return None
                filled += count
    return header, arrays


def input_types(path: str) -> dict[str, str]:
    """Read what a model takes, in its own order."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    filled = {tensor.name for tensor in graph.initializer}
    asked = [one for one in graph.input if one.name not in filled]
    return {one.name: str(onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)) for one in asked}


class Worker:
    """Compile the model for the shapes that it is asked with, one set of them at a time."""

    def __init__(self, path: str, threads: int) -> None:
        self.path, self.threads, self.types = path, threads, input_types(path)
        self.engine: Any = None
        self.shapes: list[list[int]] = []

    def compile(self, shapes: list[list[int]]) -> Any:
        """Return the engine for inputs of these shapes, in the model's order; none: as the model says, at batch 1."""
        from deepsparse import Engine

        if self.engine is None or shapes != self.shapes:
            self.engine = None  # frees the threads of the one before
            batch, cores = shapes[0][0] if shapes and shapes[0] else 1, self.threads or None
            self.engine = Engine(self.path, batch_size=batch, num_cores=cores, input_shapes=shapes or None)
            self.shapes = shapes
        return self.engine

    def answer(self, inputs: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Run one batch, or tell what is known of the model; raises ValueError for inputs that it does not take."""
        if not inputs:
            engine = self.engine or self.compile([])
            return {"supported": engine.fraction_of_supported_ops, "threads": engine.num_cores}, {}
        found = {name: str(array.dtype) for name, array in inputs.items()}
        if found != self.types:
            raise ValueError(f"it takes {self.types}, not {found}")
        feed = [inputs[name] for name in self.types]
        engine = self.compile([list(array.shape) for array in feed])
        return {}, dict(zip(engine.output_names, engine.run(feed), strict=True))


def main() -> None:
    """Answer until the other side closes the pipe."""
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # DeepSparse prints to stdout
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    while (message := receive(asked)) is not None:
        try:
            header, outputs = worker.answer(message[1])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side has to know
            header, outputs = {"error": f"{type(error).__name__}: {error}"}, {}
        send(answers, header, outputs)


if __name__ == "__main__":
    main()
