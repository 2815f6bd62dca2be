"""Read and write ONNX files: protobuf, external data, atomic replacement."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from sparsify import RequestError

from sparsify_onnx.graph import walk

EXTERNAL_BYTES = 1_500_000_000  # above this the weights go into a file of their own
ALIGNMENT = 4096  # pages, so that runtimes may map the file
SMALL_BYTES = 1024  # tensors below stay in the model file
# several values a byte; older versions of onnx lack some
PACKED = frozenset({"INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2"} & {*TensorProto.DataType.keys()})


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file and pull in its external data; raises RequestError for whatever is wrong with the files."""
    model = _parse(path)
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _fill(tensor, path)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise RequestError(f"model {path} {what}", fix="give the path of an .onnx file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _no_onnx(path) from error
    if not model.HasField("graph") or not model.opset_import or not (_is_text(model) and _is_text(model.graph)):
        raise _no_onnx(path)
    return model


def _is_text(message: onnx.ModelProto | onnx.GraphProto) -> bool:
    """Say whether a message's own strings are UTF-8; protobuf gives those that are not as bytes."""
    return not any(
        field.type == field.TYPE_STRING and isinstance(value, bytes) for field, value in message.ListFields()
    )


def _no_onnx(path: Path) -> RequestError:
    return RequestError(
        f"{path} is no ONNX model, or it is cut short ({path.stat().st_size:,} bytes)",
        fix="export or copy the model again, and check that the sizes agree",
    )


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor in a model: initializers and attributes, those of subgraphs and functions included."""
    yield from model.graph.initializer
    nodes = [*walk(model.graph), *(node for function in model.functions for node in function.node)]
    for node in nodes:
        for item in node.attribute:
            if item.type == onnx.AttributeProto.TENSOR:
                yield item.t
            yield from item.tensors
            for graph in [item.g, *item.graphs]:
                yield from graph.initializer


def model_files(path: Path) -> tuple[Path, ...]:
    """List the files a model consists of: itself and its data files."""
    model = _parse(path)
    places = (tensor for tensor in tensors(model) if tensor.data_location == TensorProto.EXTERNAL)
    return path, *dict.fromkeys(_data_file(tensor, path) for tensor in places)


def _data_file(tensor: TensorProto, path: Path) -> Path:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    if not location or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise RequestError(
            f"{path}: tensor '{tensor.name}' keeps its data in '{location}', outside the model's folder",
            fix="save the model again with its data file beside it (onnx.save with a relative `location`)",
        )
    # a model reached through a link may have its data beside the link or beside the file
    places = [folder / location for folder in (path.parent, path.resolve().parent)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RequestError(
            f"{path}: the external data file '{location}' is missing (tensor '{tensor.name}' needs it)",
            fix=f"copy {location} into {path.parent}, or export the model again",
        )
    return found


def _fill(tensor: TensorProto, path: Path) -> None:
    place = _data_file(tensor, path)
    facts = {entry.key: entry.value for entry in tensor.external_data}
    offset, size = _number(facts.get("offset"), 0), place.stat().st_size
    length = _number(facts.get("length"), max(size - offset, 0))
    with place.open("rb") as file:
        file.seek(offset)
        data = file.read(min(length, size))
    if len(data) != length:
        raise RequestError(
            f"{place} is cut short: tensor '{tensor.name}' needs bytes {offset} to {offset + length}, found {size}",
            fix="copy the data file again, or export the model again",
        )
    tensor.raw_data = data
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() else default


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the size of a tensor's data from its type and dims; protobuf's own ByteSize serializes it."""
    if tensor.data_type not in helper.get_all_tensor_dtypes():
        return 0  # a broken file: the checker says so
    return int(prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def is_cut(tensor: TensorProto) -> bool:
    """Say whether a tensor holds more or fewer bytes than its type and dims say; packed 2- and 4-bit types are not."""
    packed = tensor.data_type in map(TensorProto.DataType.Value, PACKED)
    return tensor.HasField("raw_data") and not packed and len(tensor.raw_data) != tensor_bytes(tensor)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the size of all initializers, which is the model's but for the graph."""
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer)


def write_atomic(model: onnx.ModelProto, path: Path) -> None:
    """Write a model so that a killed run leaves the old file or the new one; the same model gives the same bytes."""
    external = weight_bytes(model) > EXTERNAL_BYTES
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write_files(model, temporary, external=external, data_name=f"{path.name}.data")
        if external:
            os.replace(_partial_data(temporary), path.with_name(f"{path.name}.data"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _partial_data(temporary).unlink(missing_ok=True)


def _partial_data(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def write_files(model: onnx.ModelProto, path: Path, *, external: bool, data_name: str = "") -> None:
    """Write `path`, and with `external` the large initializers to `path`.data, which the model calls `data_name`."""
    if external:
        model = _write_data(model, _partial_data(path), data_name or f"{path.name}.data")
    _write(path, model.SerializeToString(deterministic=True))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_data(model: onnx.ModelProto, path: Path, name: str) -> onnx.ModelProto:
    """Write the data of large initializers and return the model without it; the model given is left alone."""
    light = without_initializers(model)
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            if not is_heavy(tensor):
                light.graph.initializer.append(tensor)
                continue
            data = (tensor if tensor.HasField("raw_data") else _raw(tensor)).raw_data
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            light.graph.initializer.append(stub(tensor, name, file.tell(), len(data)))
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return light


def is_heavy(tensor: TensorProto) -> bool:
    """Say whether a tensor's data may lie outside the model file; that of shapes and scales must be readable in it."""
    return tensor_bytes(tensor) >= SMALL_BYTES and tensor.data_type != TensorProto.STRING


def stub(tensor: TensorProto, location: str, offset: int, length: int) -> TensorProto:
    """Describe a tensor whose data lies elsewhere."""
    found = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    found.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        found.external_data.add(key=key, value=value)
    return found


def _raw(tensor: TensorProto) -> TensorProto:
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy everything but the initializers."""
    graph, light = onnx.GraphProto(), onnx.ModelProto()
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _put(graph, field.name, value)
    for field, value in model.ListFields():
        if field.name != "graph":
            _put(light, field.name, value)
    light.graph.CopyFrom(graph)
    return light


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its weights as inputs, for libraries that take no message above 2 GB, and copy it."""
    light = without_initializers(model)
    listed = {value.name for value in light.graph.input}
    for tensor in model.graph.initializer:
        if not is_heavy(tensor):
            light.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def give_back(converted: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Turn inputs that stand for weights into initializers again."""
    held = {tensor.name: tensor for tensor in model.graph.initializer if is_heavy(tensor)}
    asked = {value.name for value in model.graph.input}
    kept = [value for value in converted.graph.input if value.name not in held or value.name in asked]
    found = [held[value.name] for value in converted.graph.input if value.name in held]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.graph.initializer.extend(found)


def _put(message: onnx.GraphProto | onnx.ModelProto, name: str, value: object) -> None:
    if isinstance(value, (str, int)):
        setattr(message, name, value)
    else:
        getattr(message, name).MergeFrom(value)
