"""Hypothesis strategies for pickles, valid and nearly so, and torch zips around them."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from tests.builders import (
    call,
    dict_of,
    get,
    list_of,
    name,
    number,
    pickled,
    put,
    size,
    storage,
    tensor,
    text,
    torch_entries,
    tuple_of,
    zip_file,
)


class Made(NamedTuple):
    """A file, and whether every name in it is one that torch's weights-only reader knows."""

    data: bytes
    known: bool


WORDS = st.sampled_from(["a", "b.c", "weight", "", "0", "é", "\x1b[31m", "x" * 300]) | st.text(max_size=4).filter(
    lambda word: not any("\ud800" <= letter <= "\udfff" for letter in word)
)
INTEGERS = st.integers(-3, 20) | st.sampled_from([2**15, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63)])
# What a view of a storage of 16 floats can be, and what it cannot.
VIEWS = st.tuples(
    st.lists(st.integers(0, 4), max_size=3), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 6)
).map(lambda view: (view[0], (view[1] * 4 + [1, 1, 1])[: len(view[0])], view[2]))  # fmt: skip
KINDS = {
    "FloatStorage": 16,
    "DoubleStorage": 8,
    "HalfStorage": 32,
    "BFloat16Storage": 32,
    "LongStorage": 8,
    "ByteStorage": 64,
}


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """Mostly sound: the storage is as long as it says, the view mostly within it."""
    shape, stride, offset = draw(VIEWS)
    kind = draw(st.sampled_from(["FloatStorage"] * 20 + sorted(KINDS)))
    count = KINDS[kind] + draw(st.sampled_from([0] * 12 + [-1, 1]))
    place = storage("0", count, name("torch", kind))
    made = tensor(shape, stride, offset, place)
    if draw(st.integers(0, 5)) == 0:
        made = call(name("torch._utils", "_rebuild_parameter"), made, b"\x89", call(name("collections", "OrderedDict")))
    return made


SCALARS = st.one_of(
    st.sampled_from([b"N", b"\x88", b"\x89", b"G\x3f\xf0" + bytes(6), b")", b"]", b"}", name("torch", "float32")]),
    INTEGERS.map(number),
    WORDS.map(text),
    st.binary(max_size=4).map(lambda raw: call(name("_codecs", "encode"), text(raw.decode("latin-1")), text("latin1"))),
    st.lists(st.integers(0, 5), max_size=3).map(size),
    tensors(),
    tensors(),
)
KEYS = st.one_of(
    WORDS.map(text),
    st.integers(0, 300).map(number),
    st.tuples(WORDS.map(text), st.integers(0, 9).map(number)).map(lambda two: tuple_of(*two)),
)


def _within(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    pairs = st.lists(st.tuples(KEYS, inner), max_size=4)
    items = st.lists(inner, max_size=4)
    return st.one_of(
        pairs.map(lambda members: dict_of(*members)),
        pairs.map(
            lambda members: call(name("collections", "OrderedDict")) + b"(" + b"".join(k + v for k, v in members) + b"u"
        ),
        items.map(lambda members: list_of(*members)),
        items.map(lambda members: tuple_of(*members)),
        # A value kept in the memo and met again; one dropped; one that holds itself.
        st.tuples(inner, st.integers(0, 3)).map(
            lambda two: two[0] + put(two[1]) + b"0" + list_of(get(two[1]), get(two[1]))
        ),
        st.tuples(inner, inner).map(lambda two: two[0] + b"0" + two[1]),
        st.integers(4, 6).map(lambda slot: b"]" + put(slot) + get(slot) + b"a"),
    )


VALUES = st.recursive(SCALARS, _within, max_leaves=12)
STRAY = st.sampled_from(
    [
        b"N",
        b"0",
        b"1",
        b"(",
        b")",
        b"t",
        b"\x85",
        b"\x87",
        b"a",
        b"e",
        b"s",
        b"u",
        b"R",
        b"b",
        b"Q",
        b"2",
        b".",
        b"h\0",
        b"h\7",
        b"q\1",
        b"K",
    ]
)
FOREIGN = st.sampled_from(
    [name("argparse", "Namespace"), name("x.y", "z"), name("os", "system"), name("torch", "load")]
)


@st.composite
def pickles(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A pickle of protocol 2, in a third of cases with a few bytes that do not belong; whether torch may see it."""
    body = draw(VALUES)
    if draw(st.integers(0, 3)):
        some = draw(st.lists(tensors(), min_size=1, max_size=3))
        body = dict_of(*((text(f"t{index}"), one) for index, one in enumerate(some)), (text("more"), body))
    known = True
    if draw(st.integers(0, 2)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(body)))
            body = body[:at] + draw(STRAY) + body[at + draw(st.integers(0, 2)) :]
        # A byte that moves the others may spell a name that nobody chose.
        known = False
    if draw(st.integers(0, 7)) == 0:
        body, known = list_of(body, draw(FOREIGN) + b")R"), False
    return pickled(body), known


@st.composite
def torch_zips(draw: st.DrawFn) -> Made:
    """A torch zip around such a pickle; now and then with a lie in one field of one header."""
    pickle, known = draw(pickles())
    entries = torch_entries(pickle)
    if draw(st.integers(0, 5)) == 0:
        at, where = draw(st.integers(0, len(entries) - 1)), draw(st.sampled_from(["local", "central"]))
        field = draw(st.sampled_from(["flags", "method", "crc", "packed", "size", "name_size", "extra_size"]))
        lie = {field: draw(st.sampled_from([0, 1, 8, 63, 65, 65535, 2**32 - 1]))}
        entries[at] = entries[at]._replace(local=lie) if where == "local" else entries[at]._replace(central=lie)
        known = False
    return Made(zip_file(entries), known)
