"""What the pickle interpreter makes of names it does not know, which names run code, and what may be a key."""

from __future__ import annotations

from typing import Any

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
    """A storage that stands in a pickle, and the dtype that its type implies; None where it is bytes alone."""

    __slots__ = ("dtype", "storage")

    def __init__(self, storage: Storage, dtype: str | None) -> None:
        self.storage = storage
        self.dtype = dtype


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
    logging.config numpy.testing numpy.f2py torch.hub torch.package torch.distributed.rpc
    torch.utils.bottleneck torch.utils.cpp_extension torch.utils.collect_env torch.utils.model_zoo
    """.split()
)
# Those of them that are one file: `code.train` is no part of Python's `code`, but of a package that somebody called so.
_ONE_FILE = frozenset("code codeop commands inspect io platform profile signal site timeit trace".split())
_CODE_NAMES = frozenset(
    """
    builtins.eval builtins.exec builtins.compile builtins.execfile builtins.open builtins.file
    builtins.getattr builtins.setattr builtins.delattr builtins.__import__ builtins.input builtins.raw_input
    builtins.breakpoint builtins.globals builtins.locals builtins.apply builtins.help builtins.exit
    builtins.quit builtins.reload builtins.reduce operator.attrgetter operator.methodcaller functools.reduce
    types.CodeType
    types.FunctionType codecs.open torch.load torch.save torch.compile torch.serialization.load
    torch.jit.load torch.jit._serialization.load torch.ops.load_library torch.classes.load_library
    torch.storage._load_from_bytes numpy.load numpy.fromfile numpy.memmap numpy.lib.npyio.load
    pandas.read_pickle pandas.io.pickle.read_pickle
    """.split()
)
# No longer beginning of a name than this can be on the lists.
_MOST_PIECES = max(name.count(".") for name in _CODE_MODULES | _CODE_NAMES) + 1
# How Python 2 and the C accelerators spell modules.
_SPELLINGS = {"__builtin__": "builtins", "__builtins__": "builtins", "_io": "io", "_operator": "operator"}


def runs_code(name: str, attributes: str | None = None) -> bool:
    """Whether calling the dotted `name` could do more than build a value.

    `attributes` is the part of it that is walked as attributes, behind the module; None where that is not known.
    A module reached so counts too: `os.system` in `torch.serialization`. One that is merely called like another,
    as `mine.io` is, does not.
    """
    first, *rest = name.split(".")
    pieces = [_SPELLINGS.get(first, first), *rest]
    prefixes = {".".join(pieces[:end]) for end in range(1, min(len(pieces), _MOST_PIECES) + 1)}
    walked = pieces if attributes is None else [pieces[0], *attributes.split(".")]
    if attributes is not None and first in _ONE_FILE and "." in name[: -len(attributes) - 1]:
        prefixes, walked = set(), walked[1:]
    on_the_way = {piece.lstrip("_") for piece in walked[:-1]}
    return bool(prefixes & _CODE_NAMES or prefixes & _CODE_MODULES or on_the_way & _CODE_MODULES)


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


# Bytes that the contents of a small file may take in memory; and of a large one, for each byte beyond that.
_ROOM, _ROOM_PER_BYTE, _SMALL = 36 << 20, 80, 1 << 20


def room_of(size: int) -> int:
    """How many bytes the contents of a file of `size` bytes may take in memory, to be read and listed.

    A list of small numbers takes most of what people save: 2 bytes in a pickle, 150 in memory with its name.
    """
    return _ROOM + _ROOM_PER_BYTE * max(0, size - _SMALL)


def quoted(text: str) -> str:
    """A name from a file as a message can show it: in quotes, escaped, and no longer than it helps."""
    return f"{text!a}" if len(text) <= _MOST_QUOTED else f"{text[:_MOST_QUOTED]!a}..."


def shown(name: str) -> str:
    """The same without quotes where the name is harmless and short, as a record's is."""
    return name if name.isprintable() and len(name) <= _MOST_QUOTED else quoted(name)


_MOST_QUOTED = 200
