"""Names that run code when a pickle that holds them is loaded; a list, as nobody can tell it of a name by itself."""

from __future__ import annotations

# Modules of which a checkpoint needs nothing, and whose functions run code, reach files or other processes.
_CODE_MODULES = frozenset(
    """
    os posix posixpath nt ntpath subprocess sys importlib runpy pickle cPickle dill cloudpickle joblib marshal
    shelve socket shutil pty commands popen2 code codeop ctypes cffi multiprocessing threading asyncio concurrent
    signal tempfile webbrowser pdb bdb timeit profile cProfile trace doctest idlelib pip setuptools distutils venv
    ensurepip platform http urllib urllib2 requests httplib ftplib smtplib telnetlib xmlrpc aiohttp zipimport
    pkgutil pydoc sqlite3 fileinput gc inspect linecache site io _posixsubprocess _winapi winreg thread imp
    _frozen_importlib _frozen_importlib_external _pyio _testcapi _xxsubinterpreters _interpreters atexit mailcap ssl
    imaplib poplib nntplib socketserver SocketServer lib2to3 _aix_support _osx_support _pyrepl dbm anydbm gzip bz2
    lzma zipfile tarfile mmap py_compile compileall zipapp rlcompleter yaml jsonpickle numexpr pexpect paramiko
    IPython pytest nose _bootsubprocess cgi cgitb wsgiref mailbox modulefinder pyclbr antigravity pkg_resources
    ihooks psutil plumbum win32api win32com mako hydra.utils hydra._internal keras.models keras.saving
    keras.src.saving sklearn.externals tensorflow.python.ops.gen_io_ops test.support unittest.main unittest.mock
    logging.config logging.handlers numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib numpy.compat
    numpy.lib.format numpy.lib._npyio_impl pandas.core.computation pandas.io.common sympy.parsing torch.hub
    torch.package torch.distributed.rpc torch.distributed.elastic torch.multiprocessing.spawn torch.utils.bottleneck
    torch.utils.cpp_extension torch.utils.collect_env torch.utils.model_zoo torch.utils.benchmark
    torch.utils._config_module torch.utils.data.datapipes.utils.decoder torch.distributed.run
    torch.distributed.launch torch.distributed.launcher torch.distributed.checkpoint.format_utils
    torch.distributed.checkpoint.state_dict_loader torch.fx.graph_module torch.fx._lazy_graph_module
    torch.jit.unsupported_tensor_ops torch._inductor torch._dynamo.guards torch.testing._internal
    """.split()
)
# Those of them that are one file: `code.train` is no part of Python's `code`, but of a package that somebody called so.
_ONE_FILE = frozenset(
    """
    cgi code codeop commands imp inspect io mailbox mmap platform profile signal site ssl thread timeit trace
    """.split()
)
_CODE_NAMES = frozenset(
    """
    builtins.eval builtins.exec builtins.compile builtins.execfile builtins.open builtins.file builtins.getattr
    builtins.setattr builtins.delattr builtins.__import__ builtins.input builtins.raw_input builtins.breakpoint
    builtins.globals builtins.locals builtins.apply builtins.help builtins.exit builtins.quit builtins.reload
    builtins.reduce builtins.__build_class__ operator.attrgetter operator.methodcaller operator.call
    functools.reduce types.CodeType types.FunctionType types.LambdaType typing.get_type_hints typing._eval_type
    typing.ForwardRef._evaluate uuid._popen uuid._get_command_stdout codecs.open logging.FileHandler tokenize.open
    torch.load torch.save torch.compile torch.from_file torch.export.load torch.onnx.export torch.serialization.load
    torch.serialization._load torch.serialization._legacy_load torch.jit.load torch.jit._serialization.load
    torch.ops.load_library torch.classes.load_library torch._ops._Ops.load_library
    torch._classes._Classes.load_library torch._C.PyTorchFileReader torch._C.import_ir_module
    torch._C._import_ir_module_from_buffer torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
    torch.storage._load_from_bytes numpy.load numpy.fromfile numpy.memmap numpy.lib.npyio.load numpy.save
    numpy.savetxt numpy.loadtxt numpy.genfromtxt numpy.lib.npyio.NpzFile numpy.lib.utils.safe_eval
    numpy.core.multiarray.fromfile numpy._core.multiarray.fromfile pandas.eval pandas.read_pickle
    pandas.io.pickle.read_pickle sympy.sympify sympy.core.sympify.sympify
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
