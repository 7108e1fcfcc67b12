"""What the pickle interpreter makes of names it does not know, which names run code, and what may be a key."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckpt_cli.checkpoint import Storage, TensorInfo
from ckpt_cli.errors import CkptError


class Malformed(CkptError):
    """The stream is no valid pickle, or none of a checkpoint."""


class Truncated(Malformed):
    """The data ends before the pickle does."""


class RunsCode(CkptError):
    """The stream names something whose call would run code. Nothing was imported or called."""

    kind = "runs-code"

    def __init__(self, name: str) -> None:
        super().__init__(f"it would run code when unpickled: it names {name!a}", "do not load this file")
        self.name = name


class Global:
    """A name the tables do not know. Compares and hashes by identity."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Opaque:
    """What an unknown class or function would have made: its name, arguments, state and contents."""

    __slots__ = ("args", "elements", "items", "name", "state")

    def __init__(self, name: str, args: Any) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []


class Ordered(dict[Any, Any]):
    """An OrderedDict, which is what a module's state dict is."""

    __slots__ = ()


class Held:
    """A storage that stands in a pickle, and the dtype that its type implies; None where it is bytes alone.

    `fresh` says that the file holds its bytes, and that this has not been counted yet.
    """

    __slots__ = ("dtype", "fresh", "storage")

    def __init__(self, storage: Storage, dtype: str | None, fresh: bool = False) -> None:
        self.storage = storage
        self.dtype = dtype
        self.fresh = fresh


class Attributed:
    """A tensor and what was pickled with it, by name: attributes of its own, the scale of a quantized one."""

    __slots__ = ("more", "tensor")

    def __init__(self, tensor: TensorInfo, more: dict[str, Any]) -> None:
        self.tensor = tensor
        self.more = more


# Modules of which a checkpoint needs nothing, and whose functions run code, reach files or other processes.
_CODE_MODULES = frozenset(
    """
    os posix posixpath nt ntpath subprocess sys importlib runpy pickle cPickle dill cloudpickle joblib
    marshal shelve socket shutil pty commands popen2 code codeop ctypes cffi multiprocessing threading
    asyncio concurrent signal tempfile webbrowser pdb bdb timeit profile cProfile trace doctest idlelib pip
    setuptools distutils venv ensurepip platform http urllib urllib2 requests httplib ftplib smtplib
    telnetlib xmlrpc aiohttp zipimport pkgutil pydoc sqlite3 fileinput gc inspect linecache site io
    _posixsubprocess _winapi winreg thread imp _frozen_importlib _frozen_importlib_external _pyio _testcapi
    _xxsubinterpreters _interpreters atexit mailcap ssl imaplib poplib nntplib socketserver SocketServer
    lib2to3 _aix_support _osx_support _pyrepl dbm anydbm gzip bz2 lzma zipfile tarfile mmap py_compile
    compileall zipapp rlcompleter yaml jsonpickle numexpr pexpect paramiko IPython pytest nose
    test.support unittest.mock logging.config
    numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib numpy.compat numpy.lib.format numpy.lib._npyio_impl
    pandas.core.computation pandas.io.common sympy.parsing
    torch.hub torch.package torch.distributed.rpc torch.distributed.elastic torch.multiprocessing.spawn
    torch.utils.bottleneck torch.utils.cpp_extension torch.utils.collect_env torch.utils.model_zoo
    torch.utils.benchmark torch.utils._config_module torch.utils.data.datapipes.utils.decoder
    torch.fx.graph_module torch.jit.unsupported_tensor_ops torch._inductor torch._dynamo.guards
    torch.testing._internal
    """.split()
)
# Those of them that are one file: `code.train` is no part of Python's `code`, but of a package that somebody called so.
_ONE_FILE = frozenset(
    "code codeop commands imp inspect io mmap platform profile signal site ssl thread timeit trace".split()
)
_CODE_NAMES = frozenset(
    """
    builtins.eval builtins.exec builtins.compile builtins.execfile builtins.open builtins.file
    builtins.getattr builtins.setattr builtins.delattr builtins.__import__ builtins.input builtins.raw_input
    builtins.breakpoint builtins.globals builtins.locals builtins.apply builtins.help builtins.exit
    builtins.quit builtins.reload builtins.reduce builtins.__build_class__ operator.attrgetter
    operator.methodcaller operator.call functools.reduce types.CodeType types.FunctionType types.LambdaType
    typing.get_type_hints typing._eval_type typing.ForwardRef._evaluate uuid._popen uuid._get_command_stdout
    codecs.open torch.load torch.save torch.compile torch.from_file torch.export.load torch.onnx.export
    torch.serialization.load torch.serialization._load torch.serialization._legacy_load
    torch.jit.load torch.jit._serialization.load torch.ops.load_library torch.classes.load_library
    torch._ops._Ops.load_library torch._classes._Classes.load_library
    torch._C.PyTorchFileReader torch._C.import_ir_module torch._C._import_ir_module_from_buffer
    torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
    torch.storage._load_from_bytes numpy.load numpy.fromfile numpy.memmap numpy.lib.npyio.load
    numpy.lib.npyio.NpzFile numpy.lib.utils.safe_eval numpy.core.multiarray.fromfile numpy._core.multiarray.fromfile
    pandas.eval pandas.read_pickle pandas.io.pickle.read_pickle sympy.sympify sympy.core.sympify.sympify
    """.split()
)
# What those modules have of values: bytes and text in memory.
_HARMLESS = frozenset({"io.BytesIO", "io.StringIO"})
# No longer beginning of a name than this can be on the lists.
_MOST_PIECES = max(name.count(".") for name in _CODE_MODULES | _CODE_NAMES) + 1
# How Python 2 and the C accelerators spell modules.
_SPELLINGS = {
    "__builtin__": "builtins", "__builtins__": "builtins", "_io": "io", "_operator": "operator",
    "_functools": "functools",
}  # fmt: skip


def runs_code(name: str, attributes: str | None = None) -> bool:
    """Whether calling the dotted `name` could do more than build a value.

    `attributes` is the part of it that is walked as attributes, behind the module; None where that is not known.
    A module reached so counts too: `os.system` in `torch.serialization`. So does what leads through an object's
    inner parts, as `x.__globals__.get` does, and any method of a path. One that is merely called like another, as
    `mine.io` is, does not.
    """
    first, *rest = name.split(".")
    pieces = [_SPELLINGS.get(first, first), *rest]
    prefixes = {".".join(pieces[:end]) for end in range(1, min(len(pieces), _MOST_PIECES) + 1)}
    steps = [] if attributes is None else attributes.split(".")
    walked = pieces if attributes is None else [pieces[0], *steps]
    if attributes is not None and first in _ONE_FILE and "." in name[: -len(attributes) - 1]:
        prefixes, walked = set(), walked[1:]
    if len(steps) > 1 and (pieces[0] == "pathlib" or any(s[:2] == s[-2:] == "__" or s == "builtins" for s in steps)):
        return True
    on_the_way = {*walked[:-1], *(piece.lstrip("_") for piece in walked[:-1])}
    listed = prefixes & _CODE_NAMES or prefixes & _CODE_MODULES or on_the_way & _CODE_MODULES
    return bool(listed) and ".".join(pieces) not in _HARMLESS


# How many values a key may hold in all. Hashing one that is nested deep would exhaust the C stack, and one that
# holds the same tuple many times over would take for ever.
_MAX_KEY_PARTS = 32
_SCALARS = (str, int, float, bool, bytes, type(None))
# What compares and hashes by identity, as a tensor does.
_BY_IDENTITY = (Global, Opaque, Held, Attributed)
# Beyond it, numbers that differ can have the same hash.
_HASHED_AS_IT_IS = 2**61 - 2


class _TupleKey(tuple[Any, ...]):
    """Hashed by the text of its parts: Python's hash of numbers is known, so tuples can be made that all collide."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(tuple(part if isinstance(part, (str, bytes)) else _hashable(part) for part in self))


class _SetKey(frozenset[Any]):
    """The same of a frozen set, in whatever order its parts come."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(tuple(sorted(hash((_hashable(part),)) for part in self)))


class _LongKey(int):
    """The same of a number."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(hex(self))


class _ComplexKey(complex):
    """The same of a complex number."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(repr(self))


def _hashable(part: Any) -> Any:
    if isinstance(part, tuple):
        return hash(_TupleKey(part))
    if isinstance(part, frozenset):
        return hash(_SetKey(part))
    return hex(part) if isinstance(part, int) else repr(part)


def checked_key(key: Any) -> Any:
    """The value as it can be a dictionary key or set element; raises Malformed where it cannot.

    A tensor, as an optimizer that was pickled whole has for keys, comes back as an Attributed of its own.
    """
    if isinstance(key, TensorInfo):
        return Attributed(key, {})
    if isinstance(key, int):
        return key if -_HASHED_AS_IT_IS <= key <= _HASHED_AS_IT_IS else _LongKey(key)
    if isinstance(key, complex):
        return _ComplexKey(key)
    if not isinstance(key, (tuple, frozenset)):
        _check_part(key)
        return key
    pending: list[Any] = [key]
    parts = 1
    while pending:
        item = pending.pop()
        parts += len(item)
        if parts > _MAX_KEY_PARTS:
            raise Malformed("its pickle uses an immense tuple or set as a key")
        for part in item:
            if type(part) in (tuple, _TupleKey, frozenset, _SetKey):
                pending.append(part)
            else:
                _check_part(part)
    return _SetKey(key) if isinstance(key, frozenset) else _TupleKey(key)


def _check_part(part: Any) -> None:
    if not isinstance(part, (*_SCALARS, complex, *_BY_IDENTITY)) or isinstance(part, tuple):
        raise Malformed(f"its pickle uses a {type(part).__name__} as a key")


# Bytes that the contents of any file may take in memory, to be read and listed; and of a large one for each byte
# beyond that, as far as it holds what earns them.
_ROOM, _SMALL, _PER_BYTE = 36 << 20, 1 << 20, 80
# A list of small numbers is most of what people save: 2 bytes in a pickle, 150 in memory with their names, of which
# there are not more than the last of these bytes can give.
_PER_CONTENT_BYTE, _MOST_CONTENT = 80, 6 << 20
# A storage comes with a tensor, and with a dict where it is an optimizer's; another view of it with less.
_PER_STORAGE, _PER_VIEW = 1_600, 1_200


class Earned(NamedTuple):
    """What a file of `size` bytes holds that nobody gets for a byte: bytes of numbers and texts; storages, and
    tensors that are views of them.
    """

    size: int
    content: int = 0
    storages: int = 0
    views: int = 0

    @property
    def room(self) -> int:
        """Bytes that its contents may take in memory. Lists, marks and the like have to do with what others left."""
        earned = _PER_CONTENT_BYTE * min(_MOST_CONTENT, self.content)
        earned += _PER_STORAGE * self.storages + _PER_VIEW * self.views
        return _ROOM + min(earned, _PER_BYTE * max(0, self.size - _SMALL))


def quoted(text: str) -> str:
    """A name from a file as a message can show it: in quotes, escaped, and no longer than it helps."""
    return f"{text!a}" if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]!a}..."


def shown(name: str) -> str:
    """The same without quotes where the name is harmless and short, as a record's is."""
    return name if name.isprintable() and len(name) <= _MOST_QUOTED else quoted(name)


_MOST_QUOTED = 200
