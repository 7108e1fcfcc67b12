"""The rules of the code that no type checker sees, read from its syntax trees and from running processes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "ckpt_cli"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in SOURCES]
MAX_LINES = 400

# Functions of `os` and `shutil`, and methods of paths, that take a name away or give it to something else.
# `replace` is not among the methods: text has one too. Nobody here makes a Path, so os.replace is what there is.
CHANGING_CALLS = {
    "os": {"unlink", "remove", "rename", "renames", "replace", "rmdir", "removedirs", "link"},
    "shutil": {"rmtree", "move"},
}
CHANGING_METHODS = {"unlink", "rename", "rmdir", "hardlink_to", "link_to"}
CHANGERS = {"removal.py", "atomic.py"}
HEAVY = {"torch", "numpy", "rich", "pydantic", "transformers", "safetensors", "pandas"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def changes(source: ast.AST) -> Iterator[str]:
    """Every mention of a function that renames or removes: called, passed on, or imported by name."""
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in CHANGING_CALLS.get(owner, ()) or (
                node.attr in CHANGING_METHODS and owner not in CHANGING_CALLS
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module in CHANGING_CALLS:
            for alias in node.names:
                if alias.name in CHANGING_CALLS[node.module]:
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"
        # Another name for a module, or paths as objects, would hide the calls from the look above.
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "pathlib" or (alias.name in CHANGING_CALLS and alias.asname):
                    yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module == "pathlib":
            yield f"line {node.lineno}: {ast.unparse(node)}"


def module_level(source: ast.Module) -> Iterator[tuple[int, str]]:
    """The modules that are imported when the module is: outside functions and outside `if TYPE_CHECKING`."""
    pending: list[ast.AST] = list(source.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        pending.extend(ast.iter_child_nodes(node))


def looks_up_names(source: ast.AST) -> Iterator[str]:
    """What could turn a name from a file into a function or a module."""
    words = {"eval", "exec", "compile", "__import__", "getattr", "setattr", "globals", "vars", "breakpoint", "open"}
    modules = {
        "pickle",
        "importlib",
        "marshal",
        "shelve",
        "runpy",
        "subprocess",
        "pkgutil",
        "ctypes",
        "builtins",
        "imp",
    }
    for node in ast.walk(source):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in words:
            yield f"line {node.lineno}: {node.id}"
        if isinstance(node, ast.Attribute) and node.attr in {"__dict__", "__getattribute__", "__globals__", "modules"}:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Import):
            yield from (f"line {node.lineno}: {a.name}" for a in node.names if a.name.split(".")[0] in modules)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules:
            yield f"line {node.lineno}: {node.module}"


def neighbours(source: ast.AST, folder: str) -> Iterator[str]:
    """The plug-ins of its own folder that a module imports; those with an underscore are what they share."""
    package = f"ckpt_cli.{folder}"
    for node in ast.walk(source):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            names = [f"{package}.{a.name}" for a in node.names if (PACKAGE / folder / f"{a.name}.py").exists()]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"{package}.{node.module or '(relative)'}"]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (n for n in names if n.startswith(f"{package}.") and not n.startswith(f"{package}._"))


# --- the checkers themselves: a rule that finds nothing must be able to


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("os.unlink(p)", 1), ("os.replace(a, b)", 1), ("shutil.rmtree(p)", 1), ("path.unlink()", 1),
        ("Path(p).rename(q)", 1), ("run(os.remove)", 1), ("from os import rename as r", 1), ("import shutil as s", 1),
        ("from pathlib import Path", 1), ("os.link(a, b)", 1), ("a.b.rmdir()", 1),
        ("'a'.replace('b', 'c')", 0), ("replace(value, name=1)", 0), ("from dataclasses import replace", 0),
        ("x.remove(y)", 0), ("os.path.join(a)", 0), ("value._replace(a=1)", 0), ("import os", 0),
    ],
)  # fmt: skip
def test_the_check_of_changes(line: str, found: int) -> None:
    assert len(list(changes(ast.parse(line)))) == found


def test_the_check_of_imports() -> None:
    text = "import a.b\nif TYPE_CHECKING:\n    import c\ntry:\n    import d\nexcept ImportError:\n    from e import f\n"
    text += "def g():\n    import h\nclass I:\n    import j\n"
    assert sorted(name for _, name in module_level(ast.parse(text))) == ["a.b", "d", "e", "j"]


@pytest.mark.parametrize("line", ["eval(x)", "getattr(a, b)", "import pickle", "from importlib import x", "f(exec)"])
def test_the_check_of_lookups(line: str) -> None:
    assert len(list(looks_up_names(ast.parse(line)))) == 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from ckpt_cli.formats import dcp", 1), ("from ckpt_cli.formats.dcp import read", 1), ("from . import dcp", 1),
        ("import ckpt_cli.formats.dcp", 1), ("from .dcp import read", 1), ("if x: import ckpt_cli.formats.dcp", 1),
        ("from ckpt_cli.formats import ByteSource, _zip", 0), ("from ckpt_cli.formats._zip import Record", 0),
        ("from ckpt_cli.shapes import Box", 0),
    ],
)  # fmt: skip
def test_the_check_of_neighbours(line: str, found: int) -> None:
    assert len(list(neighbours(ast.parse(line), "formats"))) == found


# --- the rules

FOLDERS = ("families", "formats", "layouts", "maps")
PLUGINS = [name for name in NAMES if name.count("/") == 1 and name.split("/")[0] in FOLDERS]


@pytest.mark.parametrize("name", [name for name in PLUGINS if not name.endswith("__init__.py")])
def test_plugins_never_import_each_other(name: str) -> None:
    """One file can be read alone, and another taken away."""
    assert list(neighbours(tree(PACKAGE / name), name.split("/")[0])) == []


@pytest.mark.parametrize("name", NAMES)
def test_only_removal_and_atomic_change_names(name: str) -> None:
    """One place to audit: everybody else asks these two."""
    found = list(changes(tree(PACKAGE / name)))
    if name in CHANGERS:
        assert found
    else:
        assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_modules_stay_short(name: str) -> None:
    assert len((PACKAGE / name).read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", NAMES)
def test_heavy_libraries_are_never_imported_with_a_module(name: str) -> None:
    """Two seconds of torch are paid by who builds a model, inside a function."""
    assert [found for found in module_level(tree(PACKAGE / name)) if found[1].split(".")[0] in HEAVY] == []


# The folder's own module asks for optional flags of `os`, by names of its own, and hands itself to the loader.
ALLOWED = {"formats/__init__.py": ["getattr", "sys.modules"]}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("formats/")])
def test_formats_look_up_no_name(name: str) -> None:
    """Nothing that a file says can become a function, a module or an attribute."""
    allowed = ALLOWED.get(name, [])
    assert [found for found in looks_up_names(tree(PACKAGE / name)) if found.split(": ")[1] not in allowed] == []


def test_getattr_in_formats_takes_constants_only() -> None:
    """The one place that is let off: `getattr(os, "O_...", 0)` and nothing else."""
    calls = [
        node
        for node in ast.walk(tree(PACKAGE / "formats/__init__.py"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    ]
    for call in calls:
        assert ast.unparse(call).startswith("getattr(os, 'O_"), ast.unparse(call)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree(PACKAGE / name))


# --- what a command loads

LOADED = """
import json, sys
from ckpt_cli.app import main
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([codes, sorted(sys.modules)]), file=sys.stderr)
"""


def loaded(commands: list[list[str]], home: Path) -> tuple[list[int], set[str]]:
    """The exit codes of the commands in one fresh process, and the modules it has then."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(commands)],
        cwd=home,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    codes, modules = json.loads(done.stderr.splitlines()[-1])
    return codes, set(modules)


COMMANDS = {
    "list": ["list"],
    "list as a table": ["list", "--format", "table"],
    "list as JSON": ["list", "--json"],
    "latest": ["latest", "--field", "ref"],
    "inspect meta": ["inspect", "meta"],
    "inspect tensors": ["inspect", "tensors", "--format", "table"],
    "inspect tensors with digests": ["inspect", "tensors", "--hash", "--json"],
    "prune": ["prune", "--keep", "1", "--dry-run"],
    "convert": ["convert", "-o", "OUT/", "--force"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_loads_no_heavy_library(what: str, demo_tree: Path, tmp_path: Path) -> None:
    """It does its work, and neither torch nor anything like it was needed for that."""
    arguments = [f"{tmp_path}/" if word == "OUT/" else word for word in COMMANDS[what]]
    codes, modules = loaded([[*arguments, "--root", str(demo_tree)]], tmp_path)
    assert codes == [0]
    assert HEAVY & modules == set()
    if what == "convert":
        assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_help_and_errors_load_no_heavy_library(demo_tree: Path, tmp_path: Path) -> None:
    helps = [["--help"], *([name, "--help"] for name in ("list", "latest", "inspect", "prune", "convert", "demo"))]
    helps += [["inspect", "meta", "--help"], ["inspect", "tensors", "--help"], ["--version"]]
    wrong = [["lits"], ["list", "--root", str(tmp_path / "none")], ["latest", "nothing", "--root", str(demo_tree)]]
    codes, modules = loaded([*helps, *wrong], tmp_path)
    assert codes[: len(helps)] == [0] * len(helps)
    assert 0 not in codes[len(helps) :]
    assert HEAVY & modules == set()


def test_the_check_of_loading_can_fail(tmp_path: Path) -> None:
    """The demo trains a model, so its process has torch."""
    codes, modules = loaded([["demo", str(tmp_path / "demo")]], tmp_path)
    assert codes == [0]
    assert "torch" in modules


def test_the_library_loads_nothing_heavy(tmp_path: Path) -> None:
    """Every module but the demo's can be imported without torch."""
    modules = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in NAMES]
    wanted = [f"ckpt_cli.{name}" for name in modules if name not in ("__init__", "__main__")]
    script = "import importlib, sys, json\nfor name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
    script += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(wanted)],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(json.loads(done.stdout)) == set()
