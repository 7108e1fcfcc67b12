"""Pickles, zips, legacy torch and safetensors files put together byte by byte, so that every field of them can lie.

The pickle functions give pieces of a stream, each of which leaves one value on the stack; `pickled` makes a whole
one of them. The zip fields are those of APPNOTE 6.3, by names of our own.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# --- pickles

HUGE = 2**62


def pickled(*pieces: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(pieces) + b"."


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode("utf-8", "surrogatepass")


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def tuple_of(*items: bytes) -> bytes:
    if len(items) < 4:
        return b"".join(items) + b")\x85\x86\x87"[len(items) : len(items) + 1]
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dict_of(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def put(slot: int) -> bytes:
    return b"r" + slot.to_bytes(4, "little") if slot > 255 else b"q" + bytes([slot])


def get(slot: int) -> bytes:
    return b"j" + slot.to_bytes(4, "little") if slot > 255 else b"h" + bytes([slot])


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def storage(key: str = "0", count: int = 16, kind: bytes | None = None, location: str = "cpu") -> bytes:
    kind = kind or name("torch", "FloatStorage")
    return tuple_of(text("storage"), kind, text(key), text(location), number(count)) + b"Q"


def tensor(
    shape: Sequence[int] = (4,),
    stride: Sequence[int] = (1,),
    offset: int = 0,
    place: bytes | None = None,
    function: str = "_rebuild_tensor_v2",
) -> bytes:
    """A view of a storage of 16 float32 numbers, if nothing else is said."""
    sizes, steps = (tuple_of(*map(number, numbers)) for numbers in (shape, stride))
    hooks = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", function),
        storage() if place is None else place,
        number(offset),
        sizes,
        steps,
        b"\x89",
        hooks,
    )


def laughs(seed: bytes, levels: int, width: int = 2, begin: bytes = b"](", end: bytes = b"e") -> bytes:
    """A container that holds a container `width` times, `levels` times over: one pointer each."""
    return seed + b"".join(b"q\x000" + begin + b"h\0" * width + end for _ in range(levels))


# --- zips

_LOCAL = (
    ("signature", "4s"), ("needed", "H"), ("flags", "H"), ("method", "H"), ("time", "H"), ("date", "H"),
    ("crc", "L"), ("packed", "L"), ("size", "L"), ("name_size", "H"), ("extra_size", "H"),
)  # fmt: skip
_CENTRAL = (
    ("signature", "4s"), ("made", "H"), *_LOCAL[1:], ("comment_size", "H"), ("disk", "H"), ("internal", "H"),
    ("external", "L"), ("header", "L"),
)  # fmt: skip
_END = (
    ("signature", "4s"), ("disk", "H"), ("first_disk", "H"), ("here", "H"), ("count", "H"), ("size", "L"),
    ("start", "L"), ("comment_size", "H"),
)  # fmt: skip
_END64 = (
    ("signature", "4s"), ("length", "Q"), ("made", "H"), ("needed", "H"), ("disk", "L"), ("first_disk", "L"),
    ("here", "Q"), ("count", "Q"), ("size", "Q"), ("start", "Q"),
)  # fmt: skip
_LOCATOR = (("signature", "4s"), ("disk", "L"), ("place", "Q"), ("disks", "L"))
_FIELDS = {"local": _LOCAL, "central": _CENTRAL, "end": _END, "end64": _END64, "locator": _LOCATOR}
_SIGNATURES = {
    "local": b"PK\3\4", "central": b"PK\1\2", "end": b"PK\5\6", "end64": b"PK\6\6", "locator": b"PK\6\7",
}  # fmt: skip
Lies = Mapping[str, Any]


def field_names(kind: str) -> list[str]:
    """The numeric fields of one kind of header."""
    return [field for field, code in _FIELDS[kind] if code != "4s"]


class Entry(NamedTuple):
    """One record. `local` and `central` replace fields of its two headers, also their `name`, `extra` and `comment`.

    `like` is the position of an earlier entry whose local record the central header points at, instead of one of
    its own; `behind` are bytes between this record and the next.
    """

    name: bytes
    data: bytes
    deflated: bool = False
    local: Lies = {}  # noqa: RUF012
    central: Lies = {}  # noqa: RUF012
    like: int | None = None
    behind: bytes = b""


def _packed(kind: str, values: Lies, lies: Lies) -> bytes:
    out = b""
    for field, code in _FIELDS[kind]:
        value = lies.get(field, values.get(field, 0))
        if code == "4s":
            out += lies.get("signature", _SIGNATURES[kind])
        else:
            size = struct.calcsize("<" + code)
            out += (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return out


def zip_file(
    entries: Iterable[Entry],
    *,
    end: Lies | None = None,
    end64: Lies | None = None,
    locator: Lies | None = None,
    before: bytes = b"",
    between: bytes = b"",
    comment: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """An archive. `end`, `end64` and `locator` replace fields; a zip64 end is written where one is given."""
    out, directory = bytearray(before), bytearray()
    places: list[int] = []
    count = 0
    for entry in entries:
        data = entry.data
        if entry.deflated:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            data = packer.compress(data) + packer.flush()
        common = {
            "needed": 20, "method": 8 if entry.deflated else 0, "crc": zlib.crc32(entry.data), "packed": len(data),
            "size": len(entry.data), "name_size": len(entry.name),
        }  # fmt: skip
        if entry.like is None:
            places.append(len(out))
            label, extra = entry.local.get("name", entry.name), entry.local.get("extra", b"")
            sizes = {"name_size": len(label), "extra_size": len(extra)}
            out += _packed("local", {**common, **sizes}, entry.local) + label + extra + data + entry.behind
        else:
            places.append(places[entry.like])
        label, extra = entry.central.get("name", entry.name), entry.central.get("extra", b"")
        note = entry.central.get("comment", b"")
        sizes = {"name_size": len(label), "extra_size": len(extra), "comment_size": len(note), "header": places[-1]}
        directory += _packed("central", {**common, "made": 20, **sizes}, entry.central) + label + extra + note
        count += 1
    out += between
    start = len(out)
    out += directory
    where = {"here": count, "count": count, "size": len(directory), "start": start, "comment_size": len(comment)}
    if end64 is not None or locator is not None:
        place = len(out)
        out += _packed("end64", {"length": 44, "made": 45, "needed": 45, **where}, end64 or {})
        out += _packed("locator", {"place": place, "disks": 1}, locator or {})
    return bytes(out + _packed("end", where, end or {}) + comment + after)


def torch_entries(
    pickle: bytes, records: Mapping[str, bytes] | None = None, root: str = "archive", deflated: bool = False
) -> list[Entry]:
    """The records that `torch.save` writes, around a pickle of ours and one storage of 16 float32 numbers."""
    made = {"data.pkl": pickle, "byteorder": b"little", **({"data/0": bytes(64)} if records is None else records)}
    made.setdefault("version", b"3\n")
    return [Entry(f"{root}/{key}".encode(), data, deflated and key == "data.pkl") for key, data in made.items()]


def torch_file(*pieces: bytes, protocol: int = 2, deflated: bool = False, **zipped: Any) -> bytes:
    """A torch zip around one pickle made of the pieces."""
    return zip_file(torch_entries(pickled(*pieces, protocol=protocol), deflated=deflated), **zipped)


# --- legacy torch files, safetensors

MAGIC = 0x1950A86A20F9469CFC6C
MACHINE = dict_of((text("protocol_version"), number(1001)), (text("little_endian"), b"\x88"))


def legacy_file(
    *pieces: bytes,
    magic: bytes | None = None,
    protocol: bytes | None = None,
    machine: bytes = MACHINE,
    keys: bytes | None = None,
    storages: bytes | None = None,
) -> bytes:
    """A file as torch wrote before 1.6; storages are the bytes behind the pickles."""
    heads = (number(MAGIC) if magic is None else magic, number(1001) if protocol is None else protocol, machine)
    plain = b"".join(map(pickled, heads))
    listed = list_of(text("0")) if keys is None else keys
    behind = struct.pack("<q", 16) + bytes(64) if storages is None else storages
    return plain + pickled(*pieces) + pickled(listed) + behind


def safetensors_file(header: str | bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """`length` is what the file says of its header, where that is not the truth."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def slot(dtype: str = "U8", shape: Sequence[Any] = (1,), begin: Any = 0, end: Any = 1, **more: Any) -> dict[str, Any]:
    """One entry of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def written_tensors(count: int, between: bytes = b"", wide: bool = False, own: bool = False) -> bytes:
    """A list of so many tensors, each spelt as torch.save spells it, and of what is between them; of 60 dimensions, and
    no two of one shape, where they are `wide`. All are views of storage 0; where each has its `own`, that is the one of
    its number."""
    words = b"".join(text(word) + put(slot) + b"0" for slot, word in enumerate(("storage", "0", "cpu")))
    names = ("torch", "FloatStorage"), ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")
    words += b"".join(name(*parts) + put(slot) + b"0" for slot, parts in enumerate(names, 3))

    slots = 6 + own

    def each(number: int) -> bytes:
        slot = 6 + slots * number
        puts = (b"r" + (slot + more).to_bytes(4, "little") for more in range(slots))
        shape, stride = b"K\4\x85", b"K\1\x85"
        if wide:
            stride = b"(" + (b"J" + slot.to_bytes(4, "little")) * 60 + b"t"
            shape = b"(K\0" + stride[6:]
        key = text(str(number)) + b"%b" if own else b"h\1"
        call = b"h\5((h\0h\3" + key + b"h\2K\x10t%bQK\0" + shape + b"%b" + stride + b"%b\x89h\4)R%bt%bR%b"
        return b"".join(piece for pair in zip(call.split(b"%b"), (*puts, between)) for piece in pair)

    return words + list_of(*map(each, range(count)))


# --- indexes of distributed checkpoints

_DCP = "torch.distributed.checkpoint.metadata"
Chunks = Sequence[tuple[Sequence[int], Sequence[int]]]


def made(module: str, kind: str, **state: bytes) -> bytes:
    """An object of a class, by NEWOBJ and BUILD."""
    fields = [(text(key), value) for key, value in state.items()]
    return name(module, kind) + b")\x81" + dict_of(*fields) + b"b"


def size(numbers: Sequence[int]) -> bytes:
    return call(name("torch", "Size"), tuple_of(*map(number, numbers)))


def dcp_tensor(shape: Sequence[int], chunks: Chunks, dtype: bytes | None = None) -> bytes:
    """The description of one tensor; chunks are offsets and sizes."""
    boxes = [made(_DCP, "ChunkStorageMetadata", offsets=size(at), sizes=size(sizes)) for at, sizes in chunks]
    layout = call(name("torch.serialization", "_get_layout"), text("torch.strided"))
    state = tuple_of(dtype or name("torch", "float32"), layout, b"\x89", b"N", b"\x89")
    properties = name(_DCP, "TensorProperties") + b")\x81" + state + b"b"
    return made(_DCP, "TensorStorageMetadata", properties=properties, size=size(shape), chunks=list_of(*boxes))


def dcp_place(
    fqn: bytes, offset: Sequence[int] | None, file: str = "__0_0.distcp", at: int = 0, length: int = 64
) -> tuple[bytes, bytes]:
    """Where the bytes of one chunk, or of a value, lie: a key and a value of storage_data."""
    begin = b"N" if offset is None else size(offset)
    index = made(_DCP, "MetadataIndex", fqn=fqn, offset=begin, index=b"N")
    where = made(
        "torch.distributed.checkpoint.filesystem",
        "_StorageInfo",
        relative_path=text(file),
        offset=number(at),
        length=number(length),
    )
    return index, where


def dcp_index(
    tensors: Iterable[tuple[bytes, bytes]], places: Iterable[tuple[bytes, bytes]], before: bytes = b""
) -> bytes:
    """A `.metadata`; `before` is put on the stack and dropped, to set the memo."""
    body = made(_DCP, "Metadata", state_dict_metadata=dict_of(*tensors), storage_data=dict_of(*places))
    # The name that tells the format comes first in whatever torch writes.
    first = name(_DCP, "Metadata") + b"0"
    return pickled(first, before, body)


def written_places(count: int, between: bytes = b"") -> bytes:
    """A `.metadata` of so many keys and places, each spelt as torch spells it, and of what is between them."""
    names = (_DCP, "MetadataIndex"), ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size")
    attributes = "fqn", "offset", "index", "relative_path", "offset", "length"
    pieces = [name(*parts) for parts in names] + [b"\x8c" + bytes([len(word)]) + word.encode() for word in attributes]
    words = b"".join(piece + b"\x940" for piece in pieces + [b"N"] * 300)
    key = b"h\0)\x81\x94}\x94(h\3\x8c\7w%06d\x94h\4h\2K\0\x85\x94\x85\x94R\x94h\5K\0ub"
    place = b"h\1)\x81\x94}\x94(h\6\x8c\x0c__0_0.distcp\x94h\7J%bh\x08M\0\1ub"
    spelt = (key % n + place % (256 * n).to_bytes(4, "little") + between for n in range(count))
    return pickled(name(_DCP, "Metadata") + b"0", words, list_of(*spelt), protocol=4)
