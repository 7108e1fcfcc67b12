# ruff: noqa: E501
"""Files that an attacker or a failing disk would leave, made here: every format, what is wrong, what must come of it.

`cases()` gives them all; `python -m tests.hostile DIR` writes them below DIR with a MANIFEST.tsv. What must come of
a file is `reads`, `refused` (an error of ours), `damaged` (the one that says the file is not as it was written) or
`runs-code` (the one that names what would run). Nothing of them is ever run: the names are read, never called.
"""

from __future__ import annotations

import functools
import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.formats._inert import RunsCode
from ckpt_cli.tensors import read_tensors
from tests.builders import (
    HUGE,
    Entry,
    call,
    dcp_index,
    dcp_place,
    dcp_tensor,
    dict_of,
    get,
    laughs,
    legacy_file,
    list_of,
    name,
    number,
    pickled,
    put,
    safetensors_file,
    slot,
    stack_name,
    storage,
    tensor,
    text,
    torch_entries,
    torch_file,
    tuple_of,
    written_places,
    written_tensors,
    zip_file,
)


class Case(NamedTuple):
    """`heavy` marks those that are made to cost time or memory."""

    name: str
    data: bytes
    why: str
    expected: str
    heavy: bool = False


Rows = Iterator[tuple[str, bytes, str, str]]
SOUND = dict_of((text("w"), tensor((4, 4), (4, 1))), (text("b"), tensor((4,), (1,), 12)))
ODD_NAMES = {
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07", "markup": "[red]w[/red] [link=file:///etc/passwd]x[/link]",
    "bidi": "w\u202egnp.eight\u2066", "newline": "a\nb\r\nc\x85d\u2028e", "tab": "a\tb", "nul": "a\0b",
    "zero-width": "w\u200beight\ufeff", "empty": "", "dots": "..", "slash": "../../etc/passwd", "long": "n" * 5000,
    "homoglyph": "wеight", "tags": "w\U000e0041\U000e0042", "combining": "w" + "\u0301" * 500, "c1": "w\x9b31m",
    "private": "\ue000", "option": "--force", "percent": "%s%n{0}", "tensor": "<root>",
}  # fmt: skip


def _names_that_run() -> Rows:
    harmless = call(name("argparse", "Namespace"))
    evil = {
        "os_system": name("os", "system"), "posix_system": name("posix", "system"), "nt_system": name("nt", "system"),
        "subprocess": name("subprocess", "Popen"), "eval": name("builtins", "eval"), "exec": name("builtins", "exec"),
        "python2_eval": name("__builtin__", "eval"), "import": name("builtins", "__import__"),
        "getattr": name("builtins", "getattr"), "compile": name("builtins", "compile"),
        "open": name("builtins", "open"), "io_open": name("_io", "open"), "runpy": name("runpy", "run_path"),
        "importlib": name("importlib", "import_module"), "pickle_loads": name("_pickle", "loads"),
        "torch_load": name("torch", "load"), "hub": name("torch.hub", "load"),
        "bottleneck": name("torch.utils.bottleneck.__main__", "run_cprofile"), "socket": name("socket", "socket"),
        "rmtree": name("shutil", "rmtree"), "sys_exit": name("sys", "exit"), "timeit": name("timeit", "timeit"),
        "marshal": name("marshal", "loads"), "ctypes": name("ctypes", "CDLL"), "code": name("code", "interact"),
        "from_bytes": name("torch.storage", "_load_from_bytes"), "pty": name("pty", "spawn"),
        "methodcaller": name("operator", "methodcaller"), "reduce": name("functools", "reduce"),
        "stack_global": stack_name("os", "system"), "dotted_stack_global": stack_name("torch", "hub.load"),
        "dotted_modules": stack_name("collections", "abc.sys.modules"),
        "through_torch": stack_name("torch.serialization", "os.system"),
        "dunder": stack_name("torch._utils", "_rebuild_tensor_v2.__globals__"),
        "class": stack_name("builtins", "object.__subclasses__"), "path_method": stack_name("pathlib", "Path.write_text"),
        "exec_wrapper": name("torch.jit.unsupported_tensor_ops", "execWrapper"), "thread": name("_thread", "start_new_thread"),
        "graph_module": name("torch.fx.graph_module", "reduce_graph_module"), "atexit": name("atexit", "register"),
        "memoized_halves": text("system") + put(1) + b"0" + text("os") + get(1) + b"\x93",
        "short_strings": b"U\x02osU\x06system\x93", "built_from_tuple": text("os") + text("system") + b"\x93",
    }  # fmt: skip
    for label, piece in evil.items():
        yield (
            f"g_{label}",
            torch_file(piece + tuple_of(text("true")) + b"R", protocol=4),
            "names what runs code",
            "runs-code",
        )
    system = name("os", "system")
    yield "g_named_only", torch_file(system), "names it without a call", "runs-code"
    yield "g_newobj", torch_file(system + tuple_of(text("x")) + b"\x81"), "NEWOBJ of a function", "runs-code"
    yield "g_newobj_ex", torch_file(system + b")}\x92", protocol=4), "NEWOBJ_EX of a function", "runs-code"
    yield "g_obj", torch_file(b"(" + system + text("x") + b"o"), "OBJ opcode", "runs-code"
    yield "g_as_key", torch_file(b"}" + system + b"Ns"), "as a key", "runs-code"
    yield (
        "g_in_persistent_id",
        torch_file(tuple_of(text("storage"), system, text("0"), text("cpu"), b"K\x10") + b"Q"),
        "as a storage's type",
        "runs-code",
    )
    yield "g_after_tensors", torch_file(SOUND + b"0" + system), "behind what is sound", "runs-code"
    yield (
        "broken_after_payload",
        torch_file(call(system, text("x")) + b"\xff\xff"),
        "garbage behind the payload",
        "runs-code",
    )
    yield (
        "g_reduce_chain",
        torch_file(name("a", "b") + b")R" * 5000 + b"0" + system),
        "behind a chain of calls",
        "refused",
    )
    yield (
        "g_chain_of_unknown",
        torch_file(harmless + b"0" + call(name("x.y", "z"), harmless) + b"0" + system),
        "behind unknown calls",
        "runs-code",
    )
    for label, word in {
        "init": ("torch", "__init__"), "namespace": ("argparse", "Namespace"), "fullwidth": ("ｏｓ", "ｓｙｓｔｅｍ"),
        "cyrillic": ("оs", "system"), "zero_width": ("o\u200bs", "system"), "surrogate": ("\ud800", "x"),
        "empty": ("", ""), "dots": ("..", "."), "nul": ("os\0", "system\0"), "blank": (" os", "system "),
        "kelvin": ("os\u212a", "x"), "markup": ("[red]os[/red]", "\x1b[31m"), "case": ("OS", "System"),
    }.items():  # fmt: skip
        yield (
            f"n_{label}",
            torch_file(stack_name(*word) + b")R", protocol=4),
            "a name that is no module of ours: inert",
            "reads",
        )
    yield (
        "g_newline",
        torch_file(stack_name("os\n", "system") + b")R", protocol=4),
        "a newline in a module's name",
        "reads",
    )
    yield "g_no_utf8", torch_file(b"c\xff\xfe\nx\n"), "a module's name that is no text", "refused"
    yield "g_number", torch_file(b"K\1K\2\x93", protocol=4), "a name that is a number", "refused"
    yield "g_endless", torch_file(name("a", "a." * 100_000 + "b")), "a name of 200,000 characters", "refused"
    yield "inst_op", torch_file(b"(" + text("1") + b"ios\nsystem\n"), "INST opcode", "runs-code"
    yield "inst_harmless", torch_file(b"(" + text("1") + b"iargparse\nNamespace\n"), "INST opcode", "refused"
    yield "obj_harmless", torch_file(b"(" + name("argparse", "Namespace") + b"o"), "OBJ opcode", "refused"
    yield "extension", torch_file(b"\x82\1"), "extension registry", "refused"
    yield "extension4", torch_file(b"\x84\1\0\0\0"), "extension registry", "refused"
    yield "persid_string", torch_file(b"Pstorage\n"), "text persistent id", "refused"
    yield "buffer", torch_file(b"\x97", protocol=5), "out-of-band buffer", "refused"
    yield "readonly_buffer", torch_file(b"N\x98", protocol=5), "read-only buffer", "refused"
    yield (
        "namespace_with_tensor",
        torch_file(name("argparse", "Namespace") + b")\x81" + dict_of((text("w"), tensor())) + b"b"),
        "an object of an unknown class",
        "reads",
    )


def _streams() -> Rows:
    refused = {
        "append_on_dict": b"}Na", "appends_on_tuple": b")(NNe", "setitem_on_tensor": tensor() + text("x") + b"Ns",
        "setitems_on_list": b"](NNu", "additems_on_list": b"](N\x90", "key_without_value": b"}(Nu",
        "build_on_list": b"]}b", "build_on_none": b"N}b", "call_of_text": text("os.system") + b")R",
        "call_with_list": name("collections", "OrderedDict") + b"]R", "call_of_result": call(name("a", "b")) + b")R",
        "memo_dangling": b"h\5", "memo_dangling_long": b"j\xff\xff\xff\xff", "memo_text": b"g-1\n", "no_mark": b"t",
        "stack_underflow": b"\x87", "empty": b"", "pop_all": b"0", "mark_only": b"(", "dup_nothing": b"2",
        "put_nothing": b"q\0", "proto_255": b"\x80\xff", "long_digits": b"L" + b"9" * 10_000 + b"L\n",
        "int_digits": b"I" + b"9" * 10_000 + b"\n", "int_words": b"I12 34\n", "float_words": b"Fx" + b"y" * 9000 + b"\n",
        "long_binary": b"\x8b" + (70_000).to_bytes(4, "little") + b"\x7f" * 70_000, "long_negative": b"\x8b\xff\xff\xff\xff",
        "text_beyond": b"X\xff\xff\xff\x7f", "text_2_62": b"\x8d" + HUGE.to_bytes(8, "little"),
        "bytes_2_62": b"\x8e" + HUGE.to_bytes(8, "little"), "bytes_2_64": b"\x8e" + b"\xff" * 8,
        "bytearray_2_62": b"\x96" + HUGE.to_bytes(8, "little"), "bytes_2_31": b"B\xff\xff\xff\xff" + b"x" * 100,
        "string_negative": b"T\xff\xff\xff\xff", "not_utf8": b"X\2\0\0\0\xff\xfe", "no_newline": b"I12",
        "string_no_quotes": b"Sabc\n", "string_bad_escape": b"S'\\x'\n", "put_digits": b"Np" + b"9" * 5000 + b"\n",
        "pid_not_storage": text("x") + b"Q", "pid_short": tuple_of(text("storage")) + b"Q",
        "pid_module": tuple_of(text("module"), b"N", b"N", b"N", b"N") + b"Q",
        "pid_number_key": tuple_of(text("storage"), name("torch", "FloatStorage"), b"K\0", text("cpu"), b"K\x10") + b"Q",
        "pid_negative": storage(count=-1), "pid_huge": storage(count=2**63), "pid_type": storage(kind=name("builtins", "int")),
        "pid_bool": tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"\x88") + b"Q",
        "key_list": b"}]Ns", "key_dict": b"}}Ns", "key_tensor_in_tuple": b"}" + tensor() + b"\x85Ns", "key_set": b"}\x8fNs",
        "key_deep": b"}N" + b"\x85" * 100_000 + b"Ns", "key_wide": b"}(" + b"N" * 10_000 + b"tNs",
        "neg_offset": tensor(offset=-8), "neg_stride": tensor(stride=(-1,)), "neg_size": tensor((-1,)),
        "neg_pair": tensor((-2, -2), (1, 1)), "size_2_70": tensor((2**70,), (0,)), "ndim_1000": tensor((1,) * 1000, (1,) * 1000),
        "ndim_100000": tensor((1,) * 100_000, (1,) * 100_000), "size_gt_storage": tensor((17,)),
        "offset_gt_storage": tensor((1,), offset=16), "stride_gt_storage": tensor((4,), (6,)), "no_strides": tensor((4,), ()),
        "offset_overflow": tensor((2,), (2**63 - 1,)), "huge_sizes": tensor((2**62,) * 20, (0,) * 20), "tensor_of_text": tensor(place=text("0")),
        "tensor_of_tensor": tensor(place=tuple_of(tensor(), text("float32"))), "tensor_of_none": tensor(place=b"N"),
        "too_few_arguments": call(name("torch._utils", "_rebuild_tensor_v2")),
        "too_many_arguments": call(name("torch", "device"), *[b"N"] * 9), "codec": call(name("_codecs", "encode"), text("x"), text("rot13")),
        "codec_object": call(name("_codecs", "encode"), b"]"), "device_list": call(name("torch", "device"), b"]"),
        "dtype_of_text": call(name("torch._utils", "_rebuild_meta_tensor_no_storage"), text("torch.float32"), b")", b")", b"\x89"),
        "ordered_pairs": call(name("collections", "OrderedDict"), list_of(b"N")),
        "size_of_text": tensor() + b"0" + call(name("torch", "Size"), b"K\5"),
        "newobj_ex_named": name("collections", "OrderedDict") + b")" + dict_of((text("x"), b"N")) + b"\x92",
        "sparse_empty": call(name("torch._utils", "_rebuild_sparse_tensor"), b"N", b")"),
        "conj_and_neg": call(name("torch._utils", "_rebuild_tensor_v2"), storage(), b"K\0", b"K\4\x85", b"K\1\x85", b"\x89", b"N", dict_of((text("conj"), b"\x88"), (text("neg"), b"\x88"))),
    }  # fmt: skip
    for label, stream in refused.items():
        yield label, torch_file(stream, protocol=4), "a stream that is no checkpoint", "refused"
    for label, raw in {
        "no_stop": b"\x80\2}", "frame_beyond": b"\x80\4\x95" + b"\xff" * 8 + b"N.", "frame_in_frame": b"\x80\4\x95\x0a" + bytes(7) + b"\x95\1" + bytes(7) + b"N.",
        "frame_cuts_opcode": b"\x80\4\x95\2" + bytes(7) + b"X\1\0\0\0xN.", "nothing": b"", "zeros": bytes(4096),
    }.items():  # fmt: skip
        yield label, zip_file(torch_entries(raw)), "a pickle that does not hold together", "refused"
    reads = {
        "self_ref": b"}q\0" + text("self") + b"h\0s", "list_in_itself": b"]q\0h\0a", "root_list": list_of(tensor()),
        "root_none": b"N", "root_tensor": tensor(), "key_tuple": b"}" + tuple_of(b"K\1", b"K\2") + b"Ns",
        "key_tensor": b"}" + tensor() + b"Ns", "key_surrogate": b"}" + text("\ud800") + b"Ns", "key_nan": b"}" + b"G\x7f\xf8" + bytes(6) + b"Ns",
        "keys_alike": dict_of((b"K\1", b"N"), (text("1"), b"N"), (b"G\x3f\xf0" + bytes(6), tensor())),
        "object_in_itself": name("argparse", "Namespace") + b")\x81q\0}" + text("me") + b"h\0sb",
        "built_twice": name("a", "b") + b")\x81q\0}bh\0b", "state_of_shared": name("a", "b") + b")\x81q\0" + list_of(b"h\0", b"h\0}b"),
        "huge_size": tensor((2**62, 2**62), (0, 0)), "zero_size": tensor((0, 2**62), (1, 1)), "scalar": tensor((), ()),
        "meta_device": call(name("torch._utils", "_rebuild_meta_tensor_no_storage"), name("torch", "float32"), b"K\3\x85", b"K\1\x85", b"\x89"),
        "state_dict_metadata": call(name("collections", "OrderedDict")) + b"}" + text("_metadata") + b"}sb",
        "infinity": b"G\x7f\xf0" + bytes(6), "bytes": b"C\3\0\xff\n", "text_lines": text("a\nb"), "set": b"\x8f(K\1K\2\x90",
        "key_long": b"}\x8b" + (1024).to_bytes(4, "little") + b"\x7f" * 1024 + b"Ns", "mark_dropped": b"(NN1N",
    }  # fmt: skip
    for label, stream in reads.items():
        yield f"ok_{label}", torch_file(stream, protocol=4), "odd, and sound", "reads"
    for label, odd in ODD_NAMES.items():
        yield (
            f"name_{label}",
            torch_file(dict_of((text(odd), tensor()), (text("v"), text(odd)))),
            "a name that is hard to show",
            "reads",
        )
    yield "after_stop", torch_file(SOUND + b".N"), "a second pickle behind the first", "reads"
    yield "no_storage", torch_file(tensor(place=storage("7"))), "a storage that is not there", "damaged"
    yield "storage_outside", torch_file(tensor(place=storage("../data.pkl"))), "a storage elsewhere", "damaged"
    yield "storage_absolute", torch_file(tensor(place=storage("/etc/passwd"))), "a storage elsewhere", "damaged"
    yield "storage_nul", torch_file(tensor(place=storage("0\0"))), "a storage's key with NUL", "damaged"
    yield (
        "storage_newline",
        torch_file(tensor(place=storage("0\n\x1b[31m"))),
        "a storage's key with a newline",
        "damaged",
    )
    yield (
        "storage_endless",
        torch_file(tensor(place=storage("0" * 500_000))),
        "a storage's key of 500,000 characters",
        "damaged",
    )
    yield (
        "two_lengths",
        torch_file(list_of(tensor(), tensor(place=storage(count=15)))),
        "one storage, two lengths",
        "damaged",
    )
    yield (
        "two_types",
        torch_file(list_of(tensor(), tensor((1,), place=storage(count=8, kind=name("torch", "DoubleStorage"))))),
        "one storage, two types",
        "refused",
    )
    yield (
        "storage_is_pickle",
        torch_file(tensor((1,), place=storage("../data.pkl", 1))),
        "the pickle as a storage",
        "damaged",
    )
    yield (
        "storage_unaligned",
        torch_file(tensor((1,), place=storage("0", 8, name("torch", "ComplexDoubleStorage")))),
        "elements beyond",
        "damaged",
    )


def _large_and_cheap() -> dict[str, bytes]:
    """Megabytes of what one byte makes: a large file must not buy more of it than a small one."""
    count = 4_000_000
    return {
        "large_lists": b"]" * (count // 2) + b"a" * (count // 2 - 1), "large_marks": b"(" * count, "large_memo": b"N" + b"\x94" * 2 * count,
        "large_sets": b"](" + b"\x8f" * count + b"e", "large_dicts": b"](" + b"}" * count + b"e", "large_tuples": b"](" + b"N\x85" * (count // 2) + b"e",
        "large_dup": b"](N" + b"2" * count + b"e", "large_pops": b"N0" * (count // 2) + b"N", "large_frozen": b"](" + b"(\x91" * (count // 2) + b"e",
        "large_counting": b"K\0010" * (count // 3) + b"N", "large_numbers": b"](" + b"K\1" * count + b"e", "large_line": b"V" + b"x" * count,
        "large_objects": name("a", "b") + put(1) + b"0](" + b"h\1)R" * (count // 4) + b"e", "large_bases": b"](" + b")" * count + b"e",
    }  # fmt: skip


def _costly() -> Rows:
    """Made to take time or memory out of all proportion to their size."""
    shared = tensor() + put(1) + b"0"
    od, size, make_set = name("collections", "OrderedDict"), name("torch", "Size"), name("builtins", "set")
    ones = b"J\xff\xff\xff\xffq\1J\xfe\xff\xff\xffq\x0200"
    alike = b"".join(
        b"(" + b"".join(b"h\1" if index >> bit & 1 else b"h\2" for bit in range(16)) + b"tN" for index in range(30_000)
    )
    multiples = b"".join(number((2**61 - 1) * index) + b"N" for index in range(1, 20_000))
    wide_key = text("x" * 60_000) + put(1) + b"0(" + b"h\1" * 250 + b"t" + put(2) + b"0"
    sparse = call(
        name("torch._utils", "_rebuild_sparse_tensor"),
        call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo")),
        b"(h\1h\1(K\4tt",
    )
    sparse += put(1) + b"0"
    wrapped = (
        name("torch._tensor", "_rebuild_from_type_v2")
        + b"q\3"
        + b"0"
        + name("torch._utils", "_rebuild_wrapper_subclass")
        + b"q\4"
        + b"0"
    )
    wrapped += b"(" + name("a", "B") + name("torch", "float32") + b"K\1\x85K\1\x85K\0tq\5" + b"0"
    view = storage() + put(1) + b"0" + name("torch._utils", "_rebuild_tensor_v2") + put(2) + b"0"
    refused = {
        "laughs_tensor": laughs(tensor(), 60), "laughs_tensor_wide": laughs(tensor(), 60, 100),
        "laughs_tuple": laughs(tensor(), 60, 3, b"(", b"t"),
        "laughs_device": call(name("torch", "device"), laughs(b"]", 60)),
        "laughs_shape": call(name("torch._utils", "_rebuild_tensor_v2"), storage(), b"K\0", laughs(b"]", 60), b")", b"\x89", b"N"),
        "laughs_pid": laughs(b"N", 60, 2, b"(", b"t") + b"Q", "laughs_key": b"}" + laughs(b"N", 60, 2, b"(", b"t") + b"Ns",
        "laughs_set": b"\x8f(" + laughs(b"N", 60, 2, b"(", b"t") + b"\x90",
        "laughs_name": laughs(b"N", 60) + text("x") + b"\x93",
        "chain_repeated": tensor() + b"\x85" * 190 + b"q\x000](" + b"h\0" * 50_000 + b"e",
        "empty_keys": b"}q\1" + b"}q\2" + b"00" + tensor() + b"q\0" + b"0" + laughs(b"h\0", 60, 90, b"](", b"e"),
        "long_names": text("k" * 1_000_000) + put(1) + tensor() + b"q\x000}h\1h\0s" * 150 + b"q\x000](h\0h\0e",
        "long_text": text("x" * 100_000) + b"q\x000](" + b"h\0" * 50_000 + b"e",
        "wide_tuple": b"(" + b"N" * 50_000 + b"tq\x000](" + b"h\0" * 50_000 + b"e",
        "deep_lists": b"]" * 1_000_000 + b"a" * 999_999, "deep_tuples": b"N" + b"\x85" * 1_000_000,
        "deep_dicts": b"}" + b"N}" * 200_000 + b"s" * 200_000,
        "deep_objects": name("a", "b") + put(1) + b"0N" + b"\x85q\2" + b"0" + b"h\1h\2" * 1 + b"R" + b"\x85q\2" + b"0h\1h\2R\x85q\2" * 100_000,
        "size_again": b"](" + b"K\1" * 50_000 + b"eq\0" + size + b"q\x01" + b"0](" + b"h\1h\0\x85R" * 20_000 + b"e",
        "set_again": b"](" + b"".join(number(n) for n in range(20_000)) + b"eq\0" + make_set + b"q\1(" + b"h\1h\0\x85R" * 10_000 + b"t",
        "ordered_again": b"](" + b"NN\x86" * 20_000 + b"eq\0" + od + b"q\1(" + b"h\1h\0\x85R" * 10_000 + b"t",
        "encode_again": text("x" * 500_000) + b"q\0" + name("_codecs", "encode") + b"q\1(" + b"h\1h\0\x85R" * 20_000 + b"t",
        "complex_again": text("1" * 500_000) + b"q\0" + name("builtins", "complex") + b"q\1(" + b"h\1h\0\x85R0" * 20_000 + b"t",
        "device_again": text("x" * 500_000) + b"q\0" + name("torch", "device") + b"q\1(" + b"h\1h\0K\1\x86R" * 20_000 + b"t",
        "key_text": wide_key + b"}(" + b"".join(b"h\2" + number(n) + b"\x86N" for n in range(5_000)) + b"u",
        "name_again": name("a", "b" * 990) + put(1) + b"0](" + b"h\1" * 400_000 + b"e",
        "names_of_parts": text("a." * 480 + "a") + put(1) + b"0](" + b"".join(b"h\1" + text(str(n)) + b"\x93" for n in range(50_000)) + b"e",
        "bytes_again": b"B" + struct.pack("<L", 1000) + b"x" * 1000 + put(1) + b"0](" + b"h\1" * 500_000 + b"e",
        "sparse_of_sparse": tensor() + put(1) + b"0" + sparse * 40 + b"h\1",
        "tied_to_long": tensor() + put(1) + b"0}(" + text("n" * 300_000) + b"h\1" + b"".join(text(str(n)) + b"h\1" for n in range(15_000)) + b"u",
        "views_of_few_bytes": view + b"](" + (each := b"h\2(h\1K\0))\x89NtR") * 230_000 + b"e", "views_between_lists": view + b"](" + (each + b"]" * 30) * 70_000 + b"e",
        "views_of_no_bytes": view + b"(" + each[2:-1] + b"q\x030](" + b"h\2h\3R" * 600_000 + b"e",
        "many_of_one": shared + b"](" + b"h\1" * 100_000 + b"e",
        "pieces_again": shared + b"}(" + b"".join(text(f"m{n}") + b"h\1" for n in range(256)) + b"uq\2" + b"0" + wrapped + b"](" + b"h\3(h\4Nh\5h\2tR" * 60_000 + b"e",
        "dims_again": b"(" + b"K\1" * 64 + b"tq\2" + b"0(" + number(2**40) * 64 + b"tq\3" + b"0" + storage() + b"q\4" + b"0" + name("torch._utils", "_rebuild_tensor_v2") + b"q\5" + b"0](" + b"h\5(h\4K\0h\2h\3\x89NtR" * 60_000 + b"e",
        "marks_million": b"(" * 1_000_000, "sets_million": b"](" + b"\x8f" * 1_000_000 + b"e", "dicts_million": b"](" + b"}" * 1_000_000 + b"e",
        "lists_million": b"(" * 450_000 + b"l" * 450_000, "frozen": b"](" + b"(\x91" * 480_000 + b"e", "dicts_of_one": b"](" + b"}NNs" * 240_000 + b"e",
        "objects_many": name("a", "b") + put(1) + b"0](" + b"h\1)R" * 240_000 + b"e",
        "calls_nested": name("a", "b") + put(1) + b"h\1" * 200_000 + b")R" + b"\x85R" * 199_999,
        "list_in_itself": b"]q\1(" + b"N" * 1000 + b"e" + (b"(" + b"h\1" * 100 + b"e") * 4_000,
        "nested_names": b"".join(b"}" + text("k" * 500) for _ in range(1_500)) + b"](" + b"N" * 20_000 + b"e" + b"s" * 1_500,
        "odd_names": b"".join(b"}" + text("k" * 100 + "\U0001f600") for _ in range(300)) + b"](" + b"N" * 20_000 + b"e" + b"s" * 300,
        "bytearray_many": b"\x96" + struct.pack("<Q", 100_000) + b"x" * 100_000 + put(1) + b"0](" + b"h\1" * 400_000 + b"e", "extension": b"\x82\1" * 100_000, "buffers": b"\x97" * 100_000,
        "digits_again": b"\x8b" + struct.pack("<L", 1024) + b"\x7f" * 1024 + put(1) + b"0](" + b"h\1" * 300_000 + b"e",
    }  # fmt: skip
    refused |= _large_and_cheap()
    for label, stream in refused.items():
        yield label, torch_file(stream, protocol=4), "costs far more than it weighs", "refused"
    reads = {
        "laughs": laughs(b"]", 60), "laughs_wide": laughs(b"]", 60, 200), "laughs_dict": laughs(b"}", 60, 1, b"}" + text("a"), b"s"),
        "laughs_object": name("a", "b") + put(2) + b"0" + laughs(b"N", 60, 2, b"h\2](", b"e\x85R"),
        "alike_tuples": ones + b"}(" + alike + b"u", "alike_numbers": b"}(" + multiples + b"u",
        "alike_in_a_set": ones + b"\x8f(" + alike.replace(b"tN", b"t") + b"\x90",
        "wide_list": b"](" + b"N" * 50_000 + b"eq\x000](" + b"h\0" * 50_000 + b"e", "lists": b"](" + b"]" * 200_000 + b"e",
        "calls_to_order": od + put(1) + b"0](" + b"h\1)R" * 240_000 + b"e",
        "sets": b"](" + b"\x8f" * 60_000 + b"e", "memo": b"N" + b"\x94" * 300_000, "marks": b"(" * 80_000 + b"1" * 79_999 + b"tN",
        "memo_wide": b"N" + b"".join(b"r" + struct.pack("<L", n * 40_000) for n in range(60_000)), "pops": b"N0" * 100_000 + b"N",
        "objects": name("a", "b") + put(1) + b"0](" + b"h\1)R" * 60_000 + b"e", "stack": b"N" * 400_000,
        "long_numbers": b"](" + (b"\x8b" + struct.pack("<L", 1000) + b"\x7f" * 1000) * 900 + b"e",
        "tuples_as_keys": b"}(" + b"".join(b"M" + struct.pack("<H", n & 0xFFFF) + b"K" + bytes([n >> 16]) + b"\x86N" for n in range(80_000)) + b"u", "small_numbers": b"](" + b"K\1" * 300_000 + b"e",
        "bytearray_again": b"B" + struct.pack("<L", 500_000) + b"x" * 500_000 + b"q\0" + name("builtins", "bytearray") + b"q\1(" + b"h\1h\0\x85R" * 20_000 + b"t",
        "tuples_million": b"](" + b"N\x85" * 450_000 + b"e",
        "nones_million": b"](" + b"N" * 1_000_000 + b"e", "dup": b"](N" + b"2" * 1_000_000 + b"e",
        "letters": b"](" + b"".join(b"\x8c\2" + chr(0x391 + n % 50).encode() for n in range(250_000)) + b"e",
        "many_tensors": shared + b"](" + b"h\1" * 25_000 + b"e", "names": b"](" + b"".join(name("m", f"c{n}") for n in range(5_000)) + b"e",
    }  # fmt: skip
    for label, stream in reads.items():
        yield label, torch_file(stream, protocol=4), "large, and in proportion to its size", "reads"
    lists = b"](" + b"]" * 700_000 + b"e"
    for label, stream in {
        "spelt_between_lists": written_tensors(28_000, b"]" * 20), "spelt_then_lists": written_tensors(28_000) + lists + b"\x86",
        "spelt_between_nothing": written_tensors(28_000, b"N" * 120), "spelt_of_many_dims": written_tensors(9_000, wide=True),
        "words_then_lists": b"}(" + b"".join(b"\x8c\6%06dN" % n for n in range(180_000)) + b"u" + lists + b"\x86",
        "texts_of_wide_letters": b"](" + text("\u4e00\u4e01") * 500_000 + b"e",
        "words_of_wide_letters": b"}(" + b"".join(text(f"\u2581\u4e00{n}") + b"J" + struct.pack("<i", n) for n in range(400_000)) + b"u",
    }.items():  # fmt: skip
        yield label, torch_file(stream), "what a file may hold much of, and what it may not", "refused"
    yield "views_packed", torch_file(written_tensors(100_000), deflated=True), "100,000 views of 64 bytes", "refused"
    own = {
        "spelt_own_between_lists": written_tensors(27_000, b"]" * 20, own=True),
        "spelt_own_then_lists": written_tensors(27_000, own=True) + lists + b"\x86",
    }
    records = {f"data/{n}": bytes(64) for n in range(27_000)}
    numbered = {f"data/{n}": bytes(64) for n in range(60_000)}
    many = zip_file(torch_entries(pickled(written_tensors(60_000, own=True)), numbered))
    yield "spelt_own_many", many, "60,000 tensors in a file of 13 MB", "refused"
    for label, stream in own.items():
        packed = zip_file(torch_entries(pickled(stream), records))
        yield label, packed, "tensors of bytes of their own, and what a file may not hold much of", "refused"
        yield f"{label}_legacy", legacy_file(stream), "the same without a zip archive", "refused"
    for label in ("objects_many", "tied_to_long", "large_dicts"):
        yield f"{label}_legacy", legacy_file(refused[label]), "the same without a zip archive", "refused"
    for label in ("tuples_as_keys", "nones_million", "dup"):
        stacked = legacy_file(reads[label], keys=list_of(), storages=b"")
        yield f"{label}_legacy", stacked, "the same without a zip archive", "reads"
    code = "".join(f'class M{n}(Module):\n  __parameters__ = ["a", ]\n' for n in range(20_000)).encode()
    entries = [
        Entry(b"m/data.pkl", pickled(b"N")),
        Entry(b"m/constants.pkl", pickled(b")")),
        Entry(b"m/version", b"3\n"),
    ]
    entries += [Entry(b"m/code/__torch__/a%d.py" % n, code, deflated=True) for n in range(10)]
    yield "classes", zip_file(entries), "200,000 classes of TorchScript, packed", "refused"
    chance = random.Random(2)
    rest = b"".join(b"C\x5a" + chance.randbytes(90) + b"0" + b"N0" * 600 for _ in range(8_500))
    yield (
        "bomb_in_a_large_file",
        torch_file(rest + b"N", deflated=True),
        "12 MB of opcodes in a file of 1 MB",
        "refused",
    )
    yield "bomb", torch_file(b"N0" * 5_000_000 + b"N", deflated=True), "10 MB of opcodes packed to 10 kB", "refused"
    yield (
        "bomb_of_zeros",
        zip_file(torch_entries(bytes(50_000_000), deflated=True)),
        "50 MB of zeros packed to 50 kB",
        "refused",
    )
    chance = random.Random(1)
    noisy = b"".join(b"C\x5a" + chance.randbytes(90) + b"0" + b"N0" * 6_000 for _ in range(300))
    crowded = [*torch_entries(pickled(b"N")), *(Entry(b"archive/data/%d" % n, b"") for n in range(1, 500_000))]
    announced = {"count": 65535, "here": 65535}
    yield (
        "records_half_a_million",
        zip_file(crowded, end=announced, end64={}),
        "more records than any checkpoint has",
        "refused",
    )
    wide = {f"{n}": slot("U8", [1] * 400_000, n, n + 1) for n in range(6)}
    yield "safetensors_dims", safetensors_file(wide, bytes(6)), "tensors of 400,000 dimensions", "refused"
    described = {f"{n:x}": slot("U8", [1], n, n + 1) for n in range(150_000)}
    yield "safetensors_many", safetensors_file(described, bytes(150_000)), "150,000 tensors of a byte", "refused"
    yield "bomb_within_ratio", torch_file(noisy + b"N", deflated=True), "opcodes packed a hundredfold", "any"


def _zips() -> Rows:
    sound = torch_entries(pickled(SOUND))
    whole = zip_file(sound)

    def lying(
        at: int = 0, *, local: dict[str, object] | None = None, central: dict[str, object] | None = None
    ) -> bytes:
        entries = list(sound)
        entries[at] = entries[at]._replace(local=local or {}, central=central or {})
        return zip_file(entries)

    data = len(sound[0].data)
    central: dict[str, tuple[int, dict[str, object], str]] = {
        "bad_method": (0, {"method": 99}, "refused"), "encrypted": (0, {"flags": 1}, "refused"),
        "patched": (0, {"flags": 0x20}, "refused"), "strong_encryption": (0, {"flags": 0x41}, "refused"),
        "masked_headers": (0, {"flags": 0x2000}, "refused"), "size_huge": (0, {"packed": 2**31, "size": 2**31}, "refused"),
        "size_full": (0, {"packed": 2**32 - 1, "size": 2**32 - 1}, "refused"), "crc": (0, {"crc": 1}, "damaged"),
        "size_differs": (0, {"size": data + 1}, "refused"), "size_short": (0, {"packed": data - 1, "size": data - 1}, "damaged"),
        "size_long": (0, {"packed": data + 9, "size": data + 9}, "damaged"), "header_past_end": (0, {"header": 2**31}, "refused"),
        "header_other": (1, {"header": 0}, "damaged"), "header_inside": (0, {"header": 7}, "damaged"),
        "deflated_lie": (0, {"method": 8}, "damaged"), "name_size": (0, {"name_size": 65535}, "refused"),
        "name_size_short": (0, {"name_size": 3}, "refused"), "extra_size": (0, {"extra_size": 65535}, "refused"),
        "comment_size": (0, {"comment_size": 65535}, "refused"), "signature": (0, {"signature": b"PK\1\3"}, "refused"),
        "storage_size": (2, {"packed": 63, "size": 63}, "damaged"), "storage_larger": (2, {"packed": 65, "size": 65}, "damaged"),
        "needed": (0, {"needed": 9999}, "reads"), "disk": (0, {"disk": 3}, "refused"),
        "folder": (0, {"external": 0x10}, "refused"),
        "last_name_size": (-1, {"name_size": 400}, "refused"), "last_extra_size": (-1, {"extra_size": 1}, "refused"),
        "last_comment_size": (-1, {"comment_size": 1}, "refused"),
        "wide_sizes": (0, {"packed": 2**32 - 1, "size": 2**32 - 1, "extra": struct.pack("<2H2Q", 1, 16, data, data)}, "reads"),
        "wide_huge": (0, {"packed": 2**32 - 1, "size": 2**32 - 1, "extra": struct.pack("<2H2Q", 1, 16, HUGE, HUGE)}, "refused"),
        "wide_negative": (0, {"packed": 2**32 - 1, "size": 2**32 - 1, "extra": struct.pack("<2H2Q", 1, 16, 2**64 - 1, 2**64 - 1)}, "refused"),
        "wide_header": (0, {"header": 2**32 - 1, "extra": struct.pack("<2HQ", 1, 8, 2**64 - 1)}, "refused"),
        "wide_short": (0, {"size": 2**32 - 1, "packed": 2**32 - 1, "extra": struct.pack("<2HL", 1, 16, 7)}, "refused"),
        "wide_cut": (0, {"extra": b"\1\0\xff\xff"}, "reads"), "wide_twice": (0, {"packed": 2**32 - 1, "size": 2**32 - 1, "extra": struct.pack("<2H2Q2H2Q", 1, 16, data, data, 1, 16, 1, 1)}, "reads"),
        "name_nul": (1, {"name": b"archive/byte\0order"}, "damaged"), "name_no_utf8": (1, {"name": b"archive/\xff"}, "refused"),
        "name_elsewhere": (1, {"name": b"other/byteorder"}, "refused"), "name_empty": (1, {"name": b""}, "refused"),
        "name_absolute": (1, {"name": b"/archive/byteorder"}, "refused"), "name_escape": (1, {"name": b"\x1b[31m/x"}, "refused"),
        "name_of_storage": (2, {"name": b"archive/data/1"}, "damaged"), "case": (0, {"name": b"ARCHIVE/DATA.PKL"}, "refused"),
        "name_of_pickle": (0, {"name": b"archive/Data.pkl"}, "refused"), "backslash": (1, {"name": b"archive\\byteorder"}, "refused"),
    }  # fmt: skip
    for label, (at, lies, expected) in central.items():
        yield f"central_{label}", lying(at, central=lies), "the directory lies", expected
    local: dict[str, tuple[int, dict[str, object], str]] = {
        "name_len": (0, {"name_size": 65535}, "damaged"), "extra_len": (0, {"extra_size": 65535}, "damaged"),
        "name": (0, {"name": b"archive/data.pkX"}, "damaged"), "signature": (0, {"signature": b"PK\0\0"}, "refused"), "signature_later": (1, {"signature": b"PK\0\0"}, "damaged"),
        "storage_name": (2, {"name": b"archive/data/1"}, "damaged"), "extra_shift": (2, {"extra_size": 1}, "damaged"),
        "storage_signature": (2, {"signature": b"\0\0\0\0"}, "damaged"),
        "size_zero": (0, {"packed": 0, "size": 0, "crc": 0, "flags": 8}, "damaged"), "extra_pickle": (0, {"extra_size": 5}, "damaged"),
    }  # fmt: skip
    for label, (at, lies, expected) in local.items():
        yield f"local_{label}", lying(at, local=lies), "a local header lies", expected
    yield (
        "local_differs_size",
        lying(local={"size": 1, "packed": 1}),
        "local sizes differ from the directory's",
        "damaged",
    )
    yield "local_differs_method", lying(local={"method": 8}), "another method in the local header", "damaged"
    yield "local_differs_flags", lying(local={"flags": 1}), "encrypted in the local header only", "reads"
    yield "local_differs_crc", lying(local={"crc": 1}), "another CRC32 in the local header", "damaged"
    ends: dict[str, tuple[dict[str, object], str]] = {
        "here": ({"here": 2}, "refused"), "count": ({"count": 65535, "here": 65535}, "reads"), "count_more": ({"count": 9}, "refused"), "count_none": ({"count": 0}, "refused"),
        "disk": ({"disk": 1}, "refused"), "start": ({"start": 1}, "refused"), "start_past_end": ({"start": 2**32 - 1}, "refused"),
        "size": ({"size": 1}, "refused"), "size_full": ({"size": 2**32 - 1}, "refused"), "size_none": ({"size": 0}, "refused"),
        "comment": ({"comment_size": 5}, "damaged"), "comment_full": ({"comment_size": 65535}, "damaged"),
    }  # fmt: skip
    for label, (lies, expected) in ends.items():
        yield f"eocd_{label}", zip_file(sound, end=lies), "the end record lies", expected
    wide: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
        "sound": ({}, {}, "reads"), "count": ({"count": 2**63}, {}, "refused"), "size": ({"size": 2**63}, {}, "refused"),
        "start": ({"start": 2**64 - 1}, {}, "refused"), "length": ({"length": 2**64 - 1}, {}, "refused"),
        "length_short": ({"length": 1}, {}, "refused"), "signature": ({"signature": b"PK\6\5"}, {}, "refused"),
        "place": ({}, {"place": 2**64 - 1}, "refused"), "place_zero": ({}, {"place": 0}, "refused"), "start_one": ({"start": 1}, {}, "refused"),
        "here": ({"here": 1}, {}, "refused"), "disk": ({"disk": 1}, {}, "refused"), "disks": ({}, {"disks": 2}, "refused"),
    }  # fmt: skip
    for label, (end64, locator, expected) in wide.items():
        yield f"zip64_{label}", zip_file(sound, end64=end64, locator=locator), "the zip64 end lies", expected
    yield "zip64_differs", zip_file(sound, end={"count": 1}, end64={}), "the two end records differ", "refused"
    yield "dup_data_pkl", zip_file([*sound, Entry(sound[0].name, pickled(b"N"))]), "two entries of one name", "refused"
    yield (
        "dup_by_case",
        zip_file([*sound, Entry(b"archive/DATA.PKL", pickled(b"N"))]),
        "two entries that differ in case",
        "refused",
    )
    yield "dup_of_storage", zip_file([*sound, Entry(sound[2].name, bytes(64))]), "two storages of one name", "refused"
    yield (
        "overlap_same",
        zip_file([*sound, Entry(b"archive/data/1", bytes(64), like=2)]),
        "two names, one record",
        "damaged",
    )
    inner = zip_file([Entry(b"archive/data/1", bytes(64))])
    yield "nested_archive", zip_file([*sound, Entry(b"archive/extra.zip", inner)]), "an archive within", "reads"
    overlapping = torch_entries(pickled(list_of(tensor(), tensor(place=storage("1")))), {"data/0": bytes(64)})
    overlapping += [Entry(b"archive/data/1", bytes(64), like=2)]
    yield "overlap_used", zip_file(overlapping), "one record under two names, both used", "damaged"
    hidden = Entry(b"archive/data/1", bytes(64), central={"header": 0})
    yield "overlap_hidden", zip_file([*overlapping[:-1], hidden]), "a record whose header is another's", "damaged"
    yield (
        "gap",
        zip_file([sound[0]._replace(behind=b"x" * 999), *sound[1:]], between=b"y" * 999),
        "bytes between the records",
        "reads",
    )
    described = sound[2]._replace(local={"flags": 8, "crc": 0, "packed": 0, "size": 0}, central={"flags": 8})
    for label, descriptor in {
        "sound": b"PK\7\x08" + struct.pack("<3L", 0x758D6336, 64, 64), "lies": b"PK\7\x08" + b"\xff" * 12, "missing": b"", "short": b"PK\7",
    }.items():  # fmt: skip
        yield (
            f"descriptor_{label}",
            zip_file([*sound[:2], described._replace(behind=descriptor), *sound[3:]]),
            "a data descriptor",
            "reads" if label == "sound" else "damaged",
        )
    for label, root in {
        "parent": "..",
        "absolute": "",
        "long": "r" * 60_000,
        "blank": " ",
        "escape": "\x1b[31m",
    }.items():
        yield f"root_{label}", zip_file(torch_entries(pickled(SOUND), root=root)), "an odd root", "reads"
    yield (
        "name_traversal",
        zip_file([*sound, Entry(b"archive/../../etc/cron.d/x", b"x")]),
        "a name that leads out",
        "reads",
    )
    yield (
        "plain_zip",
        zip_file([Entry(b"a.txt", b"x"), Entry(b"b.txt", b"y")]),
        "a zip that is none of torch",
        "refused",
    )
    yield "no_pickle", zip_file(sound[1:]), "no data.pkl", "refused"
    yield (
        "no_entries",
        b"PK\3\4" + zip_file([])[4:] if len(zip_file([])) > 22 else b"PK\3\4" + zip_file([], end={"start": 4}),
        "an empty archive",
        "refused",
    )
    yield "two_archives", whole + whole, "one archive behind another", "refused"
    yield "prefixed", zip_file(sound, before=b"PK\3\4" + bytes(60)), "bytes before the archive, places right", "reads"
    yield "shifted", b"PK\3\4" + whole, "bytes before the archive, places wrong", "refused"
    yield "suffix_junk", zip_file(sound, after=b"x" * 100), "bytes behind the archive", "reads"
    yield (
        "suffix_endless",
        zip_file(sound, after=bytes(70_000)),
        "more behind the archive than a comment can be",
        "damaged",
    )
    yield "comment_end", zip_file(sound, comment=b"PK\5\6" + bytes(18)), "an end record within the comment", "refused"
    yield "comment_long", zip_file(sound, comment=b"c" * 65535), "the longest comment", "reads"
    for label, version, expected in (
        ("future", b"999999999999", "refused"), ("words", b"three", "refused"), ("digits", b"9" * 60, "refused"),
        ("long", b"3" * 5000, "refused"), ("arabic", "٣".encode(), "refused"), ("empty", b"", "refused"), ("negative", b"-3", "refused"),
    ):  # fmt: skip
        made = torch_entries(pickled(SOUND), {"data/0": bytes(64), "version": version})
        yield f"version_{label}", zip_file(made), "a file version", expected
    order = [entry._replace(data=b"middle") if entry.name.endswith(b"order") else entry for entry in sound]
    yield "byteorder", zip_file(order), "an unknown byte order", "refused"
    yield (
        "torchscript_without",
        zip_file([*sound, Entry(b"archive/constants.pkl", pickled(b")"))]),
        "TorchScript's marker",
        "any",
    )
    storages = "".join(f"{n}/" for n in range(3000))
    yield (
        "deep_name",
        zip_file([*sound, Entry(b"archive/" + storages.encode(), b"")]),
        "a name of 3,000 folders",
        "reads",
    )
    many = [Entry(b"archive/data/%d" % n, b"") for n in range(1, 20_000)]
    yield "many_records", zip_file([*sound, *many], end={"count": len(sound) + len(many)}), "20,000 records", "reads"


def _failing_disk() -> Rows:
    whole = torch_file(SOUND)
    start = whole.index(b"PK\1\2")
    pickle = whole.index(b"\x80\2")
    yield "empty", b"", "zero bytes", "damaged"
    yield "all_zeros", bytes(4096), "only zeros", "damaged"
    yield "few_bytes", b"PK", "two bytes", "damaged"
    for percent in (10, 50, 90, 99):
        yield f"truncated_{percent}", whole[: len(whole) * percent // 100], "a write that broke off", "damaged"
    yield "truncated_directory", whole[: start + 20], "it ends within the directory", "damaged"
    yield "truncated_end", whole[:-1], "its last byte is gone", "damaged"
    yield "zeros_tail", whole[:start] + bytes(len(whole) - start), "its end never reached the disk", "damaged"
    yield "zeros_head", bytes(64) + whole[64:], "its first sector is zeros", "refused"
    yield "zeros_pickle", whole[: pickle + 4] + bytes(32) + whole[pickle + 36 :], "zeros within the pickle", "damaged"
    yield (
        "zeros_directory",
        whole[: start + 46] + bytes(46) + whole[start + 92 :],
        "zeros within the directory",
        "refused",
    )
    flipped = bytearray(whole)
    flipped[pickle + 9] ^= 16
    yield "bitflip_pickle", bytes(flipped), "a bit of the pickle", "damaged"
    doubled = whole[:100] + whole[:100] + whole[100:]
    yield "sector_twice", doubled, "a piece written twice", "refused"
    yield "sector_lost", whole[:100] + whole[164:], "a piece lost", "refused"
    yield (
        "git_lfs_pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "an LFS pointer",
        "refused",
    )
    yield "html", b"<!DOCTYPE html><html>404</html>", "an error page", "refused"
    yield "not_zip", b"hello, this is no model\n", "a text file", "refused"
    for label, magic in {
        "gzip": b"\x1f\x8b\x08",
        "xz": b"\xfd7zXZ\0",
        "zstd": b"\x28\xb5\x2f\xfd",
        "hdf5": b"\x89HDF\r\n",
        "gguf": b"GGUF\3",
    }.items():
        yield f"is_{label}", magic + bytes(64), "another format", "refused"
    yield (
        "is_tar",
        b"pickle".ljust(257, b"\0") + b"ustar\0" + bytes(800),
        "a tar as torch before 0.2 wrote it",
        "refused",
    )
    yield "bare_pickle", pickled(SOUND), "a pickle without an archive", "refused"
    yield "bare_exec", pickled(call(name("os", "system"), text("x"))), "a bare pickle that runs code", "runs-code"


def _legacy() -> Rows:
    code = call(name("os", "system"), text("true"))
    sound = legacy_file(SOUND)
    yield "sound", sound, "nothing", "reads"
    yield "runs_code", legacy_file(code), "runs code", "runs-code"
    yield "machine_runs_code", legacy_file(SOUND, machine=code), "runs code in the third pickle", "runs-code"
    yield "keys_run_code", legacy_file(SOUND, keys=code), "runs code in the last pickle", "runs-code"
    yield "protocol_runs_code", legacy_file(SOUND, protocol=code), "runs code in the second pickle", "runs-code"
    yield "bad_magic", legacy_file(SOUND, magic=number(2**70)), "another magic number", "refused"
    yield "protocol", legacy_file(SOUND, protocol=number(7)), "an unknown protocol", "refused"
    yield (
        "protocol_text",
        legacy_file(SOUND, protocol=text("x\n" * 200_000)),
        "a protocol of 400,000 characters",
        "refused",
    )
    yield "protocol_laughs", legacy_file(SOUND, protocol=laughs(b"]", 60)), "a protocol that unfolds", "refused"
    yield (
        "protocol_deep",
        legacy_file(SOUND, protocol=b"]" * 50_000 + b"a" * 49_999),
        "a protocol nested deep",
        "refused",
    )
    yield "machine_list", legacy_file(SOUND, machine=b"]"), "no description of the machine", "refused"
    yield "machine_laughs", legacy_file(SOUND, machine=laughs(b"}", 60)), "a description that unfolds", "refused"
    yield "keys_dict", legacy_file(SOUND, keys=b"}"), "keys that are no list", "refused"
    yield "keys_numbers", legacy_file(SOUND, keys=list_of(b"K\0")), "keys that are numbers", "refused"
    yield "keys_twice", legacy_file(SOUND, keys=list_of(text("0"), text("0"))), "a key twice", "refused"
    yield "keys_unknown", legacy_file(SOUND, keys=list_of(text("\n" * 200_000))), "a key of 200,000 newlines", "refused"
    yield "keys_none", legacy_file(SOUND, keys=b"]"), "no key", "damaged"
    yield "storage_missing", legacy_file(SOUND, storages=b""), "no bytes", "damaged"
    yield "storage_short", legacy_file(SOUND, storages=struct.pack("<q", 16) + bytes(9)), "too few bytes", "damaged"
    yield (
        "storage_negative",
        legacy_file(SOUND, storages=struct.pack("<q", -16) + bytes(64)),
        "a length below zero",
        "damaged",
    )
    yield (
        "storage_huge",
        legacy_file(SOUND, storages=struct.pack("<Q", 2**63) + bytes(64)),
        "a length of 2**63",
        "damaged",
    )
    yield (
        "two_lengths",
        legacy_file(list_of(tensor(), tensor(place=storage(count=15)))),
        "one storage, two lengths",
        "refused",
    )
    yield "suffix", sound + b"more", "bytes behind the storages", "reads"
    yield (
        "view",
        legacy_file(
            tuple_of(
                text("storage"),
                name("torch", "FloatStorage"),
                text("0"),
                text("cpu"),
                b"K\x10",
                tuple_of(text("1"), b"K\0", b"K\1"),
            )
            + b"Q"
        ),
        "a storage that is a view",
        "refused",
    )
    yield "laughs", legacy_file(laughs(tensor(), 60)), "unfolds without end", "refused"
    for percent in (10, 50, 90):
        yield f"truncated_{percent}", sound[: len(sound) * percent // 100], "a write that broke off", "damaged"
    yield "text_2_62", legacy_file(b"\x8d" + HUGE.to_bytes(8, "little")), "a text of 2**62 bytes", "damaged"
    yield (
        "no_end",
        b"".join(map(pickled, (number(0x1950A86A20F9469CFC6C), number(1001), b"}")))
        + b"N0" * 100_000
        + b"N" * 1_100_000,
        "opcodes to the end",
        "damaged",
    )


def _immense_headers() -> dict[str, tuple[str, bytes]]:
    """What the library takes megabytes of, and no writer makes: here it is refused, whatever the library says."""
    place, nothing = '"dtype":"U8","shape":[1],"data_offsets":[0,1]', '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return {
        "lists": ('{"a":{"x":[' + "[]," * 1_300_000 + "0]," + place + "}}", b"x"), "numbers": ('{"a":{"x":[' + "0," * 2_000_000 + "0]," + place + "}}", b"x"),
        "name": ('{"' + "k" * 3_000_000 + '":{' + place + "}}", b"x"), "metadata": ('{"__metadata__":{' + ",".join(f'"{n}":""' for n in range(200_000)) + "}}", b""),
        "metadata_text": ('{"__metadata__":{"a":"' + "x" * 9_000_000 + '"}}', b""), "tensors_of_nothing": ("{" + ",".join(f'"e{n}":{nothing}' for n in range(50_000)) + "}", b""),
    }  # fmt: skip


def _safetensors() -> Rows:
    one, place = {"a": slot()}, '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
    byte = b"x"
    headers: dict[str, tuple[object, bytes, str]] = {
        "bom": ("\ufeff{}", b"", "refused"), "json_list": ("[]", b"", "refused"), "json_number": ("1", b"", "refused"),
        "json_null": ("null", b"", "refused"), "json_text": ('"a"', b"", "refused"), "nothing": ("", b"", "damaged"),
        "not_utf8": (b'{"\xff":1}', b"", "refused"), "overlong": (b'{"\xc0\x80":{' + place.encode() + b"}}", byte, "refused"),
        "duplicate_metadata": ('{"__metadata__":{},"__metadata__":{}}', b"", "refused"), "duplicate_key": (f'{{"a":{{{place}}},"a":{{{place}}}}}', byte, "reads"),
        "duplicate_field": (f'{{"a":{{"dtype":"U8",{place}}}}}', byte, "refused"), "missing_dtype": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, byte, "refused"),
        "missing_shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, byte, "refused"), "missing_offsets": ({"a": {"dtype": "U8", "shape": [1]}}, byte, "refused"),
        "lowercase_dtype": ({"a": slot("u8")}, byte, "refused"), "unknown_dtype": ({"a": slot("Q7")}, byte, "refused"), "dtype_long": ({"a": slot("Q" * 200_000)}, byte, "refused"),
        "dtype_object": ({"a": {"dtype": {"U8": None}, "shape": [1], "data_offsets": [0, 1]}}, byte, "any"), "dtype_number": ({"a": {"dtype": 1, "shape": [1], "data_offsets": [0, 1]}}, byte, "refused"),
        "shape_bool": ({"a": slot(shape=[True])}, byte, "refused"), "shape_float": ({"a": slot(shape=[1.0])}, byte, "refused"), "shape_text": ({"a": slot(shape=["1"])}, byte, "refused"),
        "shape_negative": ({"a": slot(shape=[-1])}, byte, "refused"), "shape_neg_pair": ({"a": slot(shape=[-1, -1])}, byte, "refused"),
        "shape_overflow": ({"a": slot("F64", [2**32, 2**32], 0, 0)}, b"", "refused"), "shape_wraps": ({"a": slot("F64", [2**61], 0, 0)}, b"", "refused"),
        "shape_2_64": ({"a": slot(shape=[2**64, 0], end=0)}, b"", "refused"), "shape_digits": ('{"a":{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,1]}}', byte, "refused"),
        "shape_mismatch": ({"a": slot(shape=[2])}, byte, "refused"), "shape_null": ({"a": {**slot(), "shape": None}}, byte, "refused"), "shape_deep": ({"a": slot(shape=[[1]])}, byte, "refused"),
        "shape_100k": ({"a": slot(shape=[1] * 100_000)}, byte, "reads"), "offsets_negative": ({"a": slot(begin=-1)}, byte, "refused"), "offsets_reversed": ({"a": slot(begin=1, end=0)}, byte, "refused"),
        "offsets_three": ({"a": {**slot(), "data_offsets": [0, 1, 1]}}, byte, "refused"), "offsets_float": ({"a": slot(end=1.0)}, byte, "refused"), "offsets_2_64": ({"a": slot(begin=2**64 - 1, end=2**64)}, byte, "refused"),
        "hole": ({"a": slot(), "b": slot(begin=2, end=3)}, b"xyz", "refused"), "hole_first": ({"a": slot(begin=1, end=2)}, b"xy", "refused"), "overlap": ({"a": slot(), "b": slot()}, byte, "refused"),
        "overlap_part": ({"a": slot(shape=[2], end=2), "b": slot(shape=[2], begin=1, end=3)}, b"xyz", "refused"), "junk": (one, b"xy", "refused"), "short": (one, b"", "damaged"),
        "f4_misaligned": ({"a": slot("F4", [1], 0, 0)}, b"", "refused"), "f4_odd": ({"a": slot("F4", [2, 3], 0, 3)}, b"xyz", "reads"), "f6": ({"a": slot("F6_E2M3", [4], 0, 3)}, b"xyz", "reads"),
        "metadata_numbers": ({"__metadata__": {"k": 1}}, b"", "refused"), "metadata_list": ({"__metadata__": []}, b"", "any"), "metadata_nested": ({"__metadata__": {"a": {"b": "c"}}}, b"", "refused"),
        "metadata_null": ({"__metadata__": None}, b"", "reads"), "metadata_text": ({"__metadata__": "x"}, b"", "refused"), "entry_list": ({"a": ["U8", [1], [0, 1]]}, byte, "any"), "entry_null": ({"a": None}, byte, "refused"),
        "surrogate": ('{"\\ud800":{' + place + "}}", byte, "refused"), "surrogate_metadata": ('{"__metadata__":{"a":"\\udfff"}}', b"", "refused"), "surrogate_low": ('{"\\udc00\\ud800":{' + place + "}}", byte, "refused"),
        "surrogate_extra": ('{"a":{"x":"\\ud800",' + place + "}}", byte, "any"), "control": ('{"a\x01":{' + place + "}}", byte, "refused"), "nul_escape": ('{"\\u0000":{' + place + "}}", byte, "reads"),
        "nan": ('{"a":{"x":NaN,' + place + "}}", byte, "refused"), "infinite": ('{"a":{"x":1e999,' + place + "}}", byte, "any"), "trailing_comma": ('{"a":{' + place + ",}}", byte, "refused"),
        "comment": ('{/**/"a":{' + place + "}}", byte, "refused"), "single_quotes": ("{'a':1}", b"", "refused"), "trailing": ('{"a":{' + place + "}} x", byte, "refused"), "zeros_behind": ('{"a":{' + place + "}}\0\0", byte, "refused"),
        "blanks": (" " * 100_000 + json.dumps(one) + "\n" * 100_000, byte, "reads"), "deep": ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", b"", "refused"), "deep_objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, b"", "refused"),
        "deep_extra": ('{"a":{"x":' + "[" * 126 + "]" * 126 + "," + place + "}}", byte, "any"), "digits_extra": ('{"a":{"x":' + "1" * 400 + "," + place + "}}", byte, "any"), "digits_million": ('{"a":{"x":' + "1" * 1_000_000 + "," + place + "}}", byte, "any"),
        "exponent": ('{"a":{"x":1e-999999999,' + place + "}}", byte, "any"), "key_long": ({"k" * 1_000_000: slot()}, byte, "reads"), "extra_many": ({"a": {**slot(), **{f"x{n}": [n] for n in range(20_000)}}}, byte, "reads"),
        "ok_scalar": ({"a": slot(shape=[])}, byte, "reads"), "ok_zero": ({"a": slot(shape=[0, 2**60], end=0)}, b"", "reads"), "ok_none": ({}, b"", "reads"), "none_but_data": ({}, byte, "refused"),
        "ok_metadata": ({"__metadata__": {"format": "pt"}, **one}, byte, "reads"), "minus_zero": ('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", "refused"),
        "names_10k": ({f"layers.{n}.w": slot(begin=n, end=n + 1) for n in range(10_000)}, bytes(10_000), "reads"), "overlap_10k": ({f"w{n}": slot() for n in range(10_000)}, byte, "refused"),
        "same_name_10k": ("{" + ",".join([f'"a":{{{place}}}'] * 10_000) + "}", byte, "reads"), "metadata_10k": ({"__metadata__": {str(n): "v" for n in range(10_000)}}, b"", "reads"), "empty_tensors_20k": ({f"e{n}": slot(shape=[0], end=0) for n in range(20_000)}, b"", "reads"),
        "reversed_10k": ({f"w{n}": slot(begin=9_999 - n, end=10_000 - n) for n in range(10_000)}, bytes(10_000), "reads"), "key_in_names": ({"__metadata__x": slot()}, byte, "reads"), "lost_in_metadata": ('{"__metadata__":{"a":1,"a":"x"}}', b"", "any"),
        "blanks_4mb": (" " * 4_000_000 + json.dumps(one), byte, "reads"), "same_name_4mb": ("{" + ",".join([f'"a":{{{place}}}'] * 80_000) + "}", byte, "reads"),
        "immense_same_name": ("{" + ",".join([f'"a":{{{place}}}'] * 150_000) + "}", byte, "refused"),
        "deep_4mb": ('{"a":' + "[" * 4_000_000, byte, "refused"), "keys_of_nothing": ("{" + ",".join(f'"{n}":0' for n in range(400_000)) + "}", byte, "refused"),
        "open_text_4mb": ('{"' + "k" * 4_000_000, byte, "refused"),
    }  # fmt: skip
    for label, (header, data, expected) in headers.items():
        yield label, safetensors_file(header, data), "a header: " + label.replace("_", " "), expected  # type: ignore[arg-type]
    for label, odd in ODD_NAMES.items():
        yield (
            f"name_{label}",
            safetensors_file({"__metadata__": {odd: odd}, odd or "": slot()}, byte),
            "a name that is hard to show",
            "reads",
        )
    for label, (text_of, data) in _immense_headers().items():
        yield f"immense_{label}", safetensors_file(text_of, data), "more than is read of what has no bytes", "refused"
    yield "header_beyond_eof", safetensors_file(one, byte, length=2_000), "a header longer than the file", "damaged"
    yield (
        "header_100mb",
        safetensors_file(one, byte, length=100_000_000),
        "a header of 100 MB that is not there",
        "damaged",
    )
    yield "header_2_64", safetensors_file(one, byte, length=2**64 - 1), "a header of 2**64 bytes", "refused"
    yield "header_zero", safetensors_file(one, byte, length=0), "a header of no bytes", "refused"
    yield "header_short", safetensors_file(one, byte, length=20), "a header that ends within itself", "refused"
    yield "seven_bytes", b"\x10" + bytes(6), "shorter than the header's length", "refused"
    yield (
        "truncated",
        safetensors_file({"a": slot(shape=[100], end=100)}, bytes(50)),
        "a write that broke off",
        "damaged",
    )


def _distributed() -> Rows:
    word = text("w")

    def one(place: tuple[bytes, bytes] | None = None, described: bytes | None = None) -> bytes:
        return dcp_index([(word, described or dcp_tensor((4,), [((0,), (4,))]))], [place or dcp_place(word, (0,))])

    yield "sound", one(), "nothing", "reads"
    code = call(name("os", "system"), text("true"))
    yield "runs_code", dcp_index([], [], before=code + b"0"), "runs code", "runs-code"
    yield "runs_code_in_a_value", one(described=code), "runs code", "runs-code"
    for label, file in {
        "parent": "../x", "absolute": "/etc/passwd", "dots": "..", "empty": "", "nul": "x\0y", "escape": "\x1b[31m", "backslash": "..\\x",
        "newline": "a\nb", "long": "a/" * 100_000,
    }.items():  # fmt: skip
        yield f"path_{label}", one(dcp_place(word, (0,), file)), "data in a file elsewhere", "refused"
    for label, (at, length) in {
        "negative": (-1, 4),
        "negative_length": (0, -4),
        "huge": (2**63, 4),
        "huge_length": (0, 2**64),
    }.items():
        yield f"place_{label}", one(dcp_place(word, (0,), at=at, length=length)), "data at an odd place", "refused"
    yield (
        "place_missing",
        dcp_index([(word, dcp_tensor((4,), [((0,), (4,))]))], []),
        "a tensor without a place",
        "damaged",
    )
    yield (
        "place_twice",
        dcp_index([], [dcp_place(word, (0,)), dcp_place(word, (0,))]),
        "two places for one chunk",
        "refused",
    )
    # Of contents alone, and of objects as small as they can be: none of it says where a tensor lies.
    entry = name("torch.distributed.checkpoint.filesystem", "_StorageInfo") + put(1) + b"0"
    entry += b"".join(
        text(key) + put(slot) + b"0" for slot, key in enumerate(("relative_path", "x", "offset", "length"), 2)
    )
    place = get(1) + b")\x81}(h\2h\3h\4K\0h\5K\1ub"
    for label, each in {
        "lists": b"]",
        "tuples": b"N\x85",
        "nothing": b"N",
        "objects": get(1) + b")\x81}b",
        "places": place,
        "places_and_nothing": place + b"N" * 20,
    }.items():
        much = dcp_index([], [], before=entry + b"(" + each * (4_000_000 // len(each)) + b"t0")
        yield f"many_{label}", much, "4 MB that are no index", "any" if each is place else "refused"
    for label, each in {"lists": b"]" * 20, "tuples": b"(" + b"N\x85" * 20 + b"t", "nothing": b"N" * 80}.items():
        yield f"spelt_between_{label}", written_places(35_000, each), "places as torch spells them", "refused"
    uneven: dict[str, tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]] = {
        "gap": ((4,), [((0,), (3,))]), "overlap": ((4,), [((0,), (3,)), ((1,), (1,))]), "beyond": ((4,), [((2,), (4,))]),
        "none": ((4,), []), "dimensions": ((4,), [((0, 0), (2, 2))]), "twice": ((4,), [((0,), (2,)), ((0,), (2,))]),
    }  # fmt: skip
    for label, (shape, chunks) in uneven.items():
        places = [dcp_place(word, at) for at in dict.fromkeys(tuple(at) for at, _ in chunks)]
        yield (
            f"chunks_{label}",
            dcp_index([(word, dcp_tensor(shape, chunks))], places),
            "chunks that do not tile the tensor",
            "damaged",
        )
    for label, sizes in {"negative": (-4,), "huge": (2**63,), "overflow": (2**40, 2**40), "many": (1,) * 1000}.items():
        yield f"shape_{label}", one(described=dcp_tensor(sizes, [])), "a shape that is none", "refused"
    yield "dtype", one(described=dcp_tensor((4,), [((0,), (4,))], text("float33"))), "an unknown dtype", "refused"
    yield "laughs", dcp_index([(word, laughs(b"]", 60))], []), "unfolds without end", "refused"
    yield (
        "laughs_shape",
        one(described=dcp_tensor((4,), [], laughs(b"N", 60, 2, b"(", b"t"))),
        "unfolds without end",
        "refused",
    )
    yield (
        "no_metadata",
        pickled(name("torch.distributed.checkpoint.metadata", "Metadata") + b"0" + b"}"),
        "no Metadata in it",
        "refused",
    )
    yield "truncated", one()[:200], "a write that broke off", "damaged"
    again = dcp_index([], [dcp_place(get(7), (n,)) for n in range(10_000)], before=text("n" * 500_000) + put(7) + b"0")
    yield "long_names", again, "one long name for 10,000 chunks", "refused"
    steps = [((n, n), (1, 1)) for n in range(2_000)] + [((0, n), (n, 1)) for n in range(1, 2_000)]
    yield (
        "stairs",
        dcp_index([(word, dcp_tensor((2_000, 2_000), steps))], [dcp_place(word, at) for at, _ in steps]),
        "chunks in no order",
        "damaged",
    )
    rows = [((n, 0), (1, 2**20)) for n in range(3_000)]
    halves = [((0, n), (3_000, 1)) for n in range(3_000)]
    mixed = [*rows[:1500], *halves[:3000]]
    yield (
        "crossed",
        dcp_index(
            [(word, dcp_tensor((3_000, 2**19 + 3_000), mixed))],
            [dcp_place(word, at) for at in dict.fromkeys(at for at, _ in mixed)],
        ),
        "chunks that cross",
        "damaged",
    )


JSON_METAS = {
    "ok": b'{"step": 100, "val_bpb": 0.9, "model_config": {"n_layer": 12, "vocab_size": 65536}}',
    "ansi": b'{"step": 1, "run": "\\u001b[31mred\\u001b[0m [bold]x[/bold] \\u202e"}', "bom": b"\xef\xbb\xbf{}",
    "dup": b'{"step": 1, "step": 2}', "list": b"[1,2,3]", "truncated": b'{"step": 100, "val_b', "empty": b"",
    "zeros": bytes(64), "deep": b"[" * 200_000, "deep_closed": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "digits": b'{"step": ' + b"9" * 10_000 + b"}", "huge_number": b'{"val_bpb": 1e999, "loss": -1e999}',
    "nan": b'{"val_bpb": NaN, "loss": Infinity}', "surrogate": b'{"\\ud800": "\\udfff"}', "not_utf8": b'{"\xff": 1}',
    "utf16": '{"step": 1}'.encode("utf-16"), "null": b"null", "text": b'"step"', "nul": b'{"a\\u0000b": 1}',
    "many_keys": json.dumps({f"k{n}": n for n in range(20_000)}).encode(), "number_keys": b'{"1": {"2": {"3": 4}}}',
    "step_text": b'{"step": "one"}', "config_list": b'{"model_config": [1, 2]}', "config_null": b'{"model_config": null}',
    "nested_big": b'{"step":' + b"1" * 4_000 + b"}", "blank": b" " * 100_000,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, Callable[[], Rows]]] = {
    "torchzip": ("pt", _names_that_run), "stream": ("pt", _streams), "zip": ("pt", _zips), "disk": ("pt", _failing_disk),
    "legacy": ("pt", _legacy), "safetensors": ("safetensors", _safetensors), "dcp": ("metadata", _distributed), "costly": ("pt", _costly),
}  # fmt: skip


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every file of tensors, by a unique name `family/label.suffix`."""
    return tuple(
        Case(f"{family}/{label}.{suffix}", data, why, expected, family == "costly" or len(data) > 200_000)
        for family, (suffix, make) in FAMILIES.items()
        for label, data, why, expected in make()
    )


def verdict(path: str) -> tuple[str, str]:
    """What comes of reading the file, and the message where it is not read."""
    try:
        file = read_tensors(path)
    except RunsCode as error:
        return "runs-code", error.message
    except Damaged as error:
        return "damaged", error.message
    except CkptError as error:
        return "refused", error.message
    json.dumps(dict(file.values))
    return "reads", ""


def write(folder: str) -> int:
    """Writes all of them and MANIFEST.tsv below the folder; how many there are."""
    rows = [(case.name, case.data, case.why, case.expected) for case in cases()]
    rows += [(f"json/meta_{label}.json", data, "metadata: " + label, "any") for label, data in JSON_METAS.items()]
    lines = ["path\tbytes\twhat is wrong\texpected"]
    for path, data, why, expected in rows:
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(data)
        lines.append(f"{path}\t{len(data)}\t{why}\t{expected}")
    with open(os.path.join(folder, "MANIFEST.tsv"), "w") as file:
        file.write("\n".join(lines) + "\n")
    return len(rows)


if __name__ == "__main__":
    print(write(sys.argv[1]), "files")
