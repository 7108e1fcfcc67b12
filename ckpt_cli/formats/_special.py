"""Tensors that are made of others: sparse, nested and wrapping ones, and what is pickled beside a tensor.

After torch/_utils.py, torch/_tensor.py and torch/nested/_internal/nested_tensor.py, torch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from ckpt_cli.formats._dtypes import ITEMSIZE
from ckpt_cli.formats._inert import Attributed, Malformed, Opaque
from ckpt_cli.formats._known import array_shape
from ckpt_cli.shapes import MAX_BYTES, are_sizes
from ckpt_cli.tensor_file import TensorInfo

# As TorchScript numbers them, after c10/core/Layout.h.
_LAYOUTS = {1: "sparse_coo", 2: "sparse_csr", 4: "sparse_csc", 5: "sparse_bsr", 6: "sparse_bsc"}
_MEMBERS = {
    "sparse_coo": ("indices", "values"),
    **dict.fromkeys(("sparse_csr", "sparse_bsr"), ("crow_indices", "col_indices", "values")),
    **dict.fromkeys(("sparse_csc", "sparse_bsc"), ("ccol_indices", "row_indices", "values")),
}
_MAX_MEMBERS = 256
# Tensors that one is made of, and those that they are made of: each may stand in another several times over.
_MAX_PIECES = 1024


def bare(value: Any) -> TensorInfo:
    """The tensor itself, without what was pickled beside it; raises Malformed for anything else."""
    found = value.tensor if isinstance(value, Attributed) else value
    if not isinstance(found, TensorInfo):
        raise Malformed("it has a tensor that is made of something else than tensors")
    return found


def attributed(made: Any, state: Any) -> Any:
    """A tensor with the attributes that its object carried; a pair of them is of its `__dict__` and its slots.

    Those of a nested one only repeat its pieces.
    """
    if not isinstance(made, (TensorInfo, Attributed)) or bare(made).form == "nested":
        return made
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    # As they are: many tensors may share one, and a copy for each of them would be many.
    named = {key: part for key, part in zip(("<attributes>", "<slots>"), parts) if isinstance(part, dict) and part}
    if not named:
        return made
    more = made.more if isinstance(made, Attributed) else {}
    return Attributed(bare(made), {**more, **named})


def members(state: Any) -> tuple[tuple[str, TensorInfo], ...]:
    """The tensors in the state of a wrapping object, by dotted attribute name, in order; at most _MAX_MEMBERS."""
    found: list[tuple[str, TensorInfo]] = []
    pending, seen = [("", state)], 0
    while pending and seen < 4 * _MAX_MEMBERS and len(found) < _MAX_MEMBERS:
        name, value = pending.pop()
        seen += 1
        if isinstance(value, (TensorInfo, Attributed)):
            found.append((name or "<root>", bare(value)))
            continue
        inner: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            inner = [(str(key), item) for key, item in islice(value.items(), _MAX_MEMBERS) if isinstance(key, str)]
        elif isinstance(value, Opaque):
            inner = [("", value.state), ("", value.items), ("", value.elements), ("", value.args)]
        elif not name and isinstance(value, (tuple, list)):
            inner = [("", item) for item in value[:_MAX_MEMBERS]]  # the object's dictionary, and its slots
        elif isinstance(value, (tuple, list)):
            inner = [(str(index), item) for index, item in enumerate(value[:_MAX_MEMBERS])]
        joined = [(f"{name}.{key}" if name and key else name or key, item) for key, item in inner]
        pending.extend(reversed([(key[:1000], item) for key, item in joined]))
    _check_pieces(found)
    return tuple(found)


def _check_pieces(pieces: Iterable[tuple[Any, TensorInfo]]) -> None:
    """Raises Malformed where they are more than _MAX_PIECES with all that they are made of."""
    pending, seen = [piece for _, piece in pieces], 0
    while pending:
        seen += 1
        if seen > _MAX_PIECES:
            raise Malformed(f"it has a tensor that is made of more than {_MAX_PIECES} others")
        pending.extend(piece for _, piece in pending.pop().pieces)


def quantizer(params: Any) -> dict[str, Any]:
    """What turns the integers of a quantized tensor into numbers, by name."""
    if type(params) is not tuple or len(params) not in (3, 4):
        raise Malformed("it has a quantized tensor without a scale")
    named = ("scale", "zero_point") if len(params) == 3 else ("scales", "zero_points", "axis")
    return {"scheme": str(params[0]) if isinstance(params[0], str) else None, **dict(zip(named, params[1:]))}


def _sparse(layout: Any, data: Any, *more: Any) -> TensorInfo:
    """A sparse tensor: its members by torch's names, its dtype that of its values.

    torch.save writes (layout, (members, size)), TorchScript (number, size, gradient, members, hooks).
    """
    if len(more) > 2:
        data = (*more[1:-1], data)
    kind = (
        _LAYOUTS.get(layout)
        if type(layout) is int
        else str(layout).removeprefix("torch.")
        if isinstance(layout, str)
        else ""
    )
    names = _MEMBERS.get(kind or "", ())
    if not names or type(data) not in (tuple, list) or len(data) <= len(names):
        raise Malformed("it has a sparse tensor that torch does not write")
    shape = data[len(names)]
    if not are_sizes(shape) or math.prod(shape) > MAX_BYTES:
        raise Malformed("it has a sparse tensor without a size, or of an odd one")
    pieces = tuple((name, bare(part)._replace(name=name)) for name, part in zip(names, data))
    _check_pieces(pieces)
    values = pieces[-1][1]
    stride = (0,) * len(shape)
    return TensorInfo("", values.dtype, tuple(shape), stride, 0, values.itemsize, None, str(kind), pieces=pieces)


def _made_of(form: str, pieces: tuple[tuple[str, TensorInfo], ...]) -> TensorInfo:
    """The first piece holds the values; the shape of the whole, which is ragged, is told as theirs."""
    _check_pieces(pieces)
    pieces = tuple((name, piece._replace(name=name)) for name, piece in pieces)
    values = pieces[0][1]
    stride = (0,) * len(values.shape)
    return TensorInfo("", values.dtype, values.shape, stride, 0, values.itemsize, None, form, pieces=pieces)


def _nested(buffer: Any, sizes: Any, strides: Any, offsets: Any) -> TensorInfo:
    named = {"values": buffer, "sizes": sizes, "strides": strides, "offsets": offsets}
    return _made_of("nested", tuple((name, bare(part)) for name, part in named.items()))


def _jagged(arguments: Any) -> TensorInfo:
    if not isinstance(arguments, dict):
        raise Malformed("it has a nested tensor that torch does not write")
    names = ("values", "offsets", "lengths")
    parts = [(name, bare(arguments[name])) for name in names if arguments.get(name) is not None]
    if not parts or parts[0][0] != "values":
        raise Malformed("it has a nested tensor without values")
    return _made_of("nested", tuple(parts))


def _parameter(*args: Any) -> Any:
    """A parameter as torch before 0.4 pickled it, a call of its class: the tensor that it is."""
    made = isinstance(args[0], (TensorInfo, Attributed)) if args else False
    return args[0] if made else Opaque("torch.nn.parameter.Parameter", args)


def _from_cpu(data: Any, *_: Any) -> TensorInfo:
    """A tensor of a device without storages, kept as a copy on the CPU: that copy."""
    return bare(data)


def _from_numpy(data: Any, dtype: Any, *_: Any) -> TensorInfo:
    """The same kept as a numpy array, whose bytes lie in the pickle itself."""
    shape = array_shape(data)
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, str) else ""
    if shape is None or name not in ITEMSIZE or math.prod(shape) * ITEMSIZE[name] > MAX_BYTES:
        raise Malformed("it has a tensor without a storage")
    return TensorInfo("", name, shape, (0,) * len(shape), 0, ITEMSIZE[name], None, "a numpy array within the pickle")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, _grad, _hooks, state: attributed(data, state),
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch.nested._internal.nested_tensor._rebuild_njt": _jagged,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_xla_tensor": _from_numpy,
}
