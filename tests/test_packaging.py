"""What is installed: the wheel and the source archive that hatchling makes, what they hold and what they say."""

from __future__ import annotations

import ast
import email
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ckpt_cli import __version__
from tests.conftest import REPOSITORY, Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = REPOSITORY / "ckpt_cli"
SCRIPTS = {
    "share/bash-completion/completions/ckpt": "ckpt.bash",
    "share/zsh/site-functions/_ckpt": "_ckpt",
    "share/fish/vendor_completions.d/ckpt.fish": "ckpt.fish",
}
# Asked for where they are, done without where they are not; `tomli` is the same as Python's own from 3.11 on.
OPTIONAL = {"numpy", "transformers"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the source archive, built as `python -m build` does."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    out = tmp_path_factory.mktemp("dist")
    made = {}
    for kind in ("wheel", "sdist"):
        code = f"import hatchling.build as b; print(b.build_{kind}({str(out)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made[kind] = out / done.stdout.split()[-1]
    return made


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with the wheel in it and nothing else."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    prefix = tmp_path_factory.mktemp("prefix")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    command += ["--disable-pip-version-check", "--ignore-installed", "--no-warn-script-location"]
    done = subprocess.run([*command, "--prefix", str(prefix), str(built["wheel"])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return prefix


def _files(folder: str) -> set[str]:
    found = (path for path in (REPOSITORY / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(REPOSITORY)) for path in found if "__pycache__" not in path.parts}


def _imported() -> Iterator[str]:
    """The first part of every module that the package imports, wherever it does."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield (node.module or "").split(".")[0]


def test_every_import_is_a_dependency_and_the_other_way_round(project: dict[str, Any]) -> None:
    declared = {re.split(r"[<>=!~; ]", line)[0] for line in project["dependencies"]}
    known = {*sys.stdlib_module_names, "ckpt_cli", "tomllib", *OPTIONAL}
    # What `convert` writes is read with safetensors, which nothing here has to import.
    assert {name for name in _imported() if name not in known} == declared - {"safetensors"}


def test_every_python_that_it_takes_is_named(project: dict[str, Any]) -> None:
    named = re.findall(r"Python :: 3\.([0-9]+)", "\n".join(project["classifiers"]))
    assert [int(minor) for minor in named] == [10, 11, 12, 13]
    assert project["requires-python"] == ">=3.10"


def test_version_of_the_changelog() -> None:
    assert f"\n## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


# --- the version


def test_version_names_tool_python_and_torch(ckpt: Run) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    said = f"ckpt {__version__}, Python {python}, torch {metadata.version('torch')}\n"
    assert ckpt("--version").out == said
    module = subprocess.run([sys.executable, "-m", "ckpt_cli", "--version"], cwd=REPOSITORY, capture_output=True)
    assert module.stdout.decode() == said


def test_version_where_there_is_no_torch(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    done = call("--version")
    assert done.code == 0 and done.out.endswith(", no torch\n")


def test_version_does_not_import_torch() -> None:
    code = "import sys; from ckpt_cli.app import main; main(['--version']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout.splitlines()[-1])
    assert "importlib.metadata" in loaded and not {"torch", "numpy", "rich", "pydantic"} & set(loaded)


# --- the wheel


def test_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    info, data = f"ckptctl-{__version__}.dist-info", f"ckptctl-{__version__}.data/data"
    aside = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == _files("ckpt_cli") | aside | {f"{data}/{place}" for place in SCRIPTS}
    assert "ckpt_cli/py.typed" in names


def test_metadata(built: dict[str, Path], project: dict[str, Any]) -> None:
    info = f"ckptctl-{__version__}.dist-info"
    with zipfile.ZipFile(built["wheel"]) as wheel:
        said = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        entry = wheel.read(f"{info}/entry_points.txt").decode()
        licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("ckptctl", __version__, "MIT")
    assert said["Summary"] == project["description"] and said["Requires-Python"] == ">=3.10"
    assert licence.startswith("MIT License") and said["Description-Content-Type"] == "text/markdown"
    assert entry.split() == ["[console_scripts]", "ckpt", "=", "ckpt_cli.__main__:run"]
    assert sum(" extra == " not in line for line in said.get_all("Requires-Dist", [])) == len(project["dependencies"])


def test_installed(installed: Path, tmp_path: Path) -> None:
    """The scripts lie where the shells look, and both ways to start it are those of the installed files."""
    for place, name in SCRIPTS.items():
        assert (installed / place).read_text() == (REPOSITORY / "completions" / name).read_text()
    variables = {"base": str(installed), "platbase": str(installed)}
    library = Path(sysconfig.get_path("purelib", vars=variables))
    bin = Path(sysconfig.get_path("scripts", vars=variables))
    environment = {**os.environ, "PYTHONPATH": str(library), "PYTHONSAFEPATH": "1"}
    for command in ([str(bin / "ckpt")], [sys.executable, "-m", "ckpt_cli"]):
        done = subprocess.run(
            [*command, "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"ckpt {__version__}, Python ")
    code = "import ckpt_cli; print(ckpt_cli.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(library)


# --- the source archive


def test_source_archive_can_be_tested(built: dict[str, Path]) -> None:
    """All that the tests read: they run from it as from a clone."""
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "Makefile", "constraints.txt"}
    for folder in ("ckpt_cli", "tests", "completions", "docs", "benchmarks"):
        wanted |= _files(folder)
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]
