"""The names that torch's own weights-only loader takes, and how it spells those of Python 2.

After torch/_weights_only_unpickler.py and the mappings in torch/_utils.py, torch 2.13. A test holds the list
against torch's.
"""

from __future__ import annotations

from ckpt_cli.formats._dtypes import ITEMSIZE, STORAGE_DTYPE

DTYPES = [*ITEMSIZE, *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))]
_DENSE = [name for name in STORAGE_DTYPE if not name.startswith("Q")]
_TENSORS = [name for name in _DENSE if not name.startswith("Complex")]
_REBUILDS = (
    "parameter parameter_with_state qtensor tensor tensor_v2 tensor_v3 sparse_tensor meta_tensor_no_storage "
    "nested_tensor wrapper_subclass device_tensor_from_numpy device_tensor_from_cpu_tensor"
).split()
QUANTIZERS = (
    "per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric per_channel_affine_float_qparams"
).split()
ALLOWED = frozenset(
    [
        *"collections.OrderedDict collections.Counter builtins.bytearray builtins.set builtins.complex".split(),
        *"_codecs.encode torch.serialization._get_layout torch.Size torch.Tensor torch.device".split(),
        *"torch.nn.parameter.Parameter torch._tensor._rebuild_from_type_v2".split(),
        *(f"torch.{name}" for name in (*DTYPES, *QUANTIZERS)),
        *(f"torch.{name}Storage" for name in STORAGE_DTYPE),
        *(f"torch.cuda.{name}Storage" for name in _DENSE),
        *(f"torch.storage.{name}Storage" for name in ("Typed", "Untyped")),
        *(f"torch.{device}{name}Tensor" for name in _TENSORS for device in ("", "cuda.")),
        *(f"torch.{device}sparse.{name}Tensor" for name in _TENSORS if name != "Bool" for device in ("", "cuda.")),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILDS),
        # What torch itself adds to its list when it is imported.
        *(f"torch.nested._internal.nested_tensor.{name}" for name in ("NestedTensor", "_rebuild_njt")),
        *(f"torch.distributed._mesh_layout.{name}" for name in ("_MeshLayout", "_FlatLayout")),
    ]
)
_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "Queue": "queue",
    "repr": "reprlib",
    "_abcoll": "collections.abc",
    "UserDict": "collections",
    "UserList": "collections",
    "UserString": "collections",
    "whichdb": "dbm",
    "StringIO": "io",
    "cStringIO": "io",
}
_NAMES = {
    "__builtin__.xrange": "builtins.range",
    "__builtin__.reduce": "functools.reduce",
    "__builtin__.intern": "sys.intern",
    "__builtin__.unichr": "builtins.chr",
    "__builtin__.unicode": "builtins.str",
    "__builtin__.long": "builtins.int",
    "__builtin__.basestring": "builtins.str",
    "itertools.izip": "builtins.zip",
    "itertools.imap": "builtins.map",
    "itertools.ifilter": "builtins.filter",
    "itertools.ifilterfalse": "itertools.filterfalse",
    "itertools.izip_longest": "itertools.zip_longest",
    "exceptions.StandardError": "builtins.Exception",
    "UserDict.IterableUserDict": "collections.UserDict",
}


def python3_name(name: str) -> str:
    """The name as Python 3 spells it; protocol 2, which torch writes, has Python 2's modules."""
    module, dot, attribute = name.rpartition(".")
    return _NAMES.get(name) or _MODULES.get(module, module) + dot + attribute
