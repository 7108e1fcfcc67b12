"""What every layout and every format has to keep, and that a new one is one new file."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from ckpt_cli import plugins
from ckpt_cli.checkpoint import Checkpoint, Role
from ckpt_cli.errors import CkptError
from ckpt_cli.formats import Files, FileSource, Format, formats
from ckpt_cli.layouts import LAST_RESORT, Folder, Layout, layout_named, layouts
from ckpt_cli.tensor_file import TensorFile
from ckpt_cli.tensors import blocks
from tests.conftest import REPOSITORY, Done

ROLES = get_args(Role)
HOUR = 3600 * 10**9


class Bytes:
    """A ByteSource that is no file."""

    path = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        from ckpt_cli.errors import Damaged

        if offset < 0 or offset + length > self.size:
            raise Damaged("memory ends before")
        return self.data[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))


def folder(path: Path, names: Iterable[str] = (), source: str | None = "base") -> Folder:
    """A directory with empty files of these names, as discovery hands it over."""
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    with os.scandir(path) as entries:
        files = {entry.name: entry for entry in entries if entry.is_file()}
    now = max((os.stat(path / name).st_mtime_ns for name in files), default=0) + HOUR
    return Folder(str(path), source, "run", files, (), now, HOUR // 6)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A distributed checkpoint: the one format of which a file is read together with others beside it."""
    from torch.distributed.checkpoint.state_dict_saver import save

    path = tmp_path_factory.mktemp("set")
    save({"w": torch.arange(3.0)}, checkpoint_id=path, no_dist=True)
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, beside: dict[str, bytes]) -> dict[str, bytes]:
    """One small sound file of each format, by the format's name. A new format needs a line here."""
    path = tmp_path_factory.mktemp("samples")
    (path / "dcp").write_bytes(beside[".metadata"])
    torch.save({"w": torch.arange(3.0)}, path / "torch-zip")
    torch.save({"w": torch.arange(3.0)}, path / "torch-legacy", _use_new_zipfile_serialization=False)
    save_file({"w": torch.arange(3.0)}, path / "safetensors")
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


# --- formats


@pytest.fixture(params=formats(), ids=lambda form: form.NAME)
def form(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


def test_every_format_has_its_members(form: Format, samples: dict[str, bytes]) -> None:
    assert isinstance(form.NAME, str)
    assert form.NAME in samples, "give the suite a sample of it"
    assert form.NAME.strip().lower() == form.NAME
    assert all(callable(member) for member in (form.matches, form.read, form.records, form.check))
    assert (form.__doc__ or "").strip()


def test_names_are_unique() -> None:
    for members in ([form.NAME for form in formats()], [layout.NAME for layout in layouts()]):
        assert len(members) == len(set(members)) > 0


def test_a_format_knows_its_own(
    form: Format, samples: dict[str, bytes], beside: dict[str, bytes], tmp_path: Path
) -> None:
    """From any source of bytes, under any name: the same tensors, and the container's name."""
    data = samples[form.NAME]
    assert form.matches(data[:64], len(data)) is True
    for name, other in beside.items():
        (tmp_path / name).write_bytes(other)
    (tmp_path / "no-suffix").write_bytes(data)
    with FileSource(str(tmp_path / "no-suffix")) as source:
        read = form.read(source)
        assert form.check(source) is None  # type: ignore[func-returns-value]
    assert type(read) is TensorFile
    assert read.container == form.NAME
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in read.tensors] == [("w", "float32", (3,))]
    elsewhere = form.read(Bytes(data))
    assert [tensor._replace(storage=None, pieces=()) for tensor in elsewhere.tensors] == [
        tensor._replace(storage=None, pieces=()) for tensor in read.tensors
    ]
    tensor = read.tensors[0]
    with Files() as files:
        assert b"".join(map(bytes, blocks(files, tensor))) == torch.arange(3.0).numpy().tobytes()
    place = tensor.pieces[0][1] if tensor.pieces else tensor
    assert place.storage in read.storages
    with FileSource(str(tmp_path / "no-suffix")) as source:
        records = list(form.records(source).found)
    assert [record.offset for record in records] == sorted({record.offset for record in records})
    assert [record._replace(name="") for record in records if record.offset == place.storage.offset] == [
        place.storage._replace(name="")
    ]
    if place.form == "strided":
        assert place.file_offset is not None
        assert data[place.file_offset : place.file_offset + 12] == torch.arange(3.0).numpy().tobytes()


def test_a_format_takes_no_other(form: Format, samples: dict[str, bytes]) -> None:
    """Neither another format's file nor nothing nor noise is its own, and to ask is always safe."""
    chance = random.Random(0)
    heads = [data[:64] for name, data in samples.items() if name != form.NAME]
    heads += [
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x1f\x8b" + b"a" * 62,
        b"GGUF" + b"\x03" * 60,
        b"\x80\x02}.",
        b"<html>",
        b"{}",
    ]
    heads += [b"version https://git-lfs.github.com/spec/v1\n", b"# a text\n" * 7]
    for head in heads:
        for size in (len(head), 10**6):
            assert form.matches(head, size) is False, head
    assert form.matches(b"", 0) is False
    for _ in range(500):
        head = chance.randbytes(chance.randint(0, 64))
        assert form.matches(head, chance.choice([len(head), 1 << 40])) is False, head


def test_a_format_survives_every_truncation(form: Format, samples: dict[str, bytes]) -> None:
    """Cut at any byte: `read`, `records` and `check` raise CkptError and nothing else."""
    data = samples[form.NAME]

    def listed(source: Bytes) -> object:
        return list(form.records(source).found)

    for length in range(len(data)):
        for look in (form.read, listed, form.check):
            with pytest.raises(CkptError) as caught:
                look(Bytes(data[:length]))
            assert caught.value.message
            assert not caught.value.message.endswith(".")


def test_a_format_survives_garbage(form: Format, samples: dict[str, bytes]) -> None:
    """Its own head and then noise, noise alone, single changed bytes: CkptError, or a reading."""
    chance = random.Random(1)
    data = samples[form.NAME]

    def listed(source: Bytes) -> object:
        return list(form.records(source).found)

    refused = 0
    for turn in range(1500):
        if turn % 3 == 0:
            changed = bytearray(data)
            changed[chance.randrange(len(data))] = chance.randrange(256)
        elif turn % 3 == 1:
            changed = bytearray(data[: chance.randrange(80)] + chance.randbytes(chance.randrange(200)))
        else:
            changed = bytearray(chance.randbytes(chance.randrange(300)))
        for look in (form.read, listed, form.check):
            try:
                look(Bytes(bytes(changed)))
            except CkptError:
                refused += 1
    assert refused > 1500


# --- layouts


@pytest.fixture(params=layouts(), ids=lambda layout: layout.NAME)
def layout(request: pytest.FixtureRequest) -> Layout:
    found: Layout = request.param
    return found


def test_every_layout_has_its_members(layout: Layout) -> None:
    assert isinstance(layout.NAME, str)
    assert layout_named(layout.NAME) is layout
    assert callable(layout.scan)
    assert layout.needs is None or callable(layout.needs)
    assert (layout.__doc__ or "").strip()


def test_removal_order(layout: Layout) -> None:
    """What a trainer finds it by goes first: what is left of a removal must not pass for a checkpoint."""
    assert layout.REMOVAL_ORDER[0] in ("model", "index")
    assert len(set(layout.REMOVAL_ORDER)) == len(layout.REMOVAL_ORDER)
    assert set(layout.REMOVAL_ORDER) <= set(ROLES)


FOREIGN = """
README.md notes.txt model.txt model_.pt model_1.txt xmodel_000001.pt model_000001.pt.tmp .model_000001.pt model_000001
meta_.json meta.json optim.pt tokenizer.pkl events.out.tfevents.1 data.bin 000001.pt MODEL_000001.PT model-000001.zip
model_00000١.pt model_+00001.pt model_1e5.pt
""".split()  # fmt: skip


def test_a_layout_finds_nothing_where_nothing_is(layout: Layout, tmp_path: Path) -> None:
    """An empty folder, and names that only look alike."""
    assert list(layout.scan(folder(tmp_path / "empty"))) == []
    # The last resort takes any file of tensors by its suffix: it is asked only where nobody else has a claim.
    names = FOREIGN if layout.PRECEDENCE < LAST_RESORT else [n for n in FOREIGN if not n.endswith((".pt", ".bin"))]
    assert list(layout.scan(folder(tmp_path / "foreign", names))) == []


def test_a_layout_survives_any_name(layout: Layout, tmp_path: Path) -> None:
    """Names made of what its names are made of, in any order: values, never an exception."""
    chance = random.Random(2)
    pieces = [
        "model",
        "meta",
        "optim",
        "_",
        "-",
        "0",
        "1",
        "00000",
        "9" * 30,
        "rank",
        ".pt",
        ".json",
        ".keep",
        "\n",
        "é",
    ]
    names = {"".join(chance.choices(pieces, k=chance.randint(1, 7))) for _ in range(3000)}
    found = list(layout.scan(folder(tmp_path / "odd", sorted(name for name in names if len(name) < 100))))
    for checkpoint in found:
        assert type(checkpoint) is Checkpoint
        assert checkpoint.layout == layout.NAME
        assert checkpoint.parts or checkpoint.problems
        assert checkpoint.state in ("complete", "incomplete", "in-progress")
        assert all(os.path.dirname(part.path) == checkpoint.dir for part in checkpoint.parts)
        assert {part.role for part in checkpoint.parts} <= set(ROLES)
    # Every file belongs to one checkpoint at most.
    paths = [part.path for checkpoint in found for part in checkpoint.parts]
    assert len(paths) == len(set(paths))


def test_a_layout_reads_a_real_folder(layout: Layout, demo_tree: Path) -> None:
    """Types of what a real run gives, the same twice, and what a checkpoint needs is of its run."""
    here = folder(demo_tree / "base_checkpoints/d4")
    found = list(layout.scan(here))
    assert found == list(layout.scan(here))
    assert (found != []) is (layout.NAME in ("nanochat", "loose"))
    for checkpoint in found:
        assert (checkpoint.source, checkpoint.tag, checkpoint.dir) == ("base", "run", here.path)
        assert (type(checkpoint.step) is int) is (checkpoint.unit is not None)
        assert type(checkpoint.parts) is tuple
        assert {entry.path for entry in here.files.values()} >= {part.path for part in checkpoint.parts}
        if layout.needs is not None:
            assert set(layout.needs(checkpoint, found)) <= set(found)


# --- the loader


def test_the_loader_names_what_is_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a member of its Protocol is a programmer's error; one with an underscore is passed over."""
    package = tmp_path / "some_plugins"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_shared.py").write_text("raise AssertionError('helpers are not loaded')\n")
    (package / "b.py").write_text("NAME = 'b'\n")
    (package / "a.py").write_text("NAME = 'a'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    found = importlib.import_module("some_plugins")
    assert isinstance(found, ModuleType)
    assert [module.NAME for module in plugins.load(found, ("NAME",))] == ["a", "b"]
    with pytest.raises(TypeError, match=r"some_plugins\.a lacks scan"):
        plugins.load(found, ("NAME", "scan"))


# --- one new file

FAKE_LAYOUT = '''
"""Files `ck-<n>.fake`, one a checkpoint."""

import re

from ckpt_cli.checkpoint import Checkpoint

NAME = "fake"
PRECEDENCE = 0
REMOVAL_ORDER = ("model",)
needs = None


def scan(folder):
    for name in folder.files:
        match = re.fullmatch(r"ck-([0-9]+)[.]fake", name)
        if match:
            problems = []
            part = folder.part(name, "model", problems)
            yield Checkpoint(
                NAME, folder.source, folder.tag, int(match[1]), "step", name, folder.path, (part,), resumable=True
            )
'''

FAKE_FORMAT = '''
"""FAKE1, then the bytes of one tensor."""

from ckpt_cli.tensor_file import Storage, TensorFile, TensorInfo
from ckpt_cli.errors import Damaged

NAME = "fake"


def matches(head, size):
    return head.startswith(b"FAKE1")


def check(source):
    if source.size < 6:
        raise Damaged(f"{source.path} is truncated")


def read(source):
    check(source)
    storage = Storage("0", source.path, 5, source.size - 5)
    tensor = TensorInfo("fake.weight", "uint8", (source.size - 5,), (1,), 0, 1, storage)
    return TensorFile(source.path, NAME, (tensor,), {}, storages=(storage,))


def records(source):
    return read(source).storages
'''


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the package with one file more in each folder, and a tree of such checkpoints."""
    shutil.copytree(REPOSITORY / "ckpt_cli", tmp_path / "lib/ckpt_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lib/ckpt_cli/layouts/fake.py").write_text(FAKE_LAYOUT)
    (tmp_path / "lib/ckpt_cli/formats/fake.py").write_text(FAKE_FORMAT)
    run = tmp_path / "tree/base_checkpoints/d3"
    run.mkdir(parents=True)
    for step in (5, 40, 300):
        path = run / f"ck-{step}.fake"
        path.write_bytes(b"FAKE1" + bytes(range(step % 251)))
        os.utime(path, (1_700_000_000 + step, 1_700_000_000 + step))
    (run / "ck-x.fake").write_bytes(b"no")
    return tmp_path


def run_extended(extended: Path, *arguments: object) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_cli", *map(str, arguments)],
        cwd=extended,
        env={"PYTHONPATH": str(extended / "lib"), "PATH": os.environ["PATH"], "HOME": str(extended)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_new_layout_and_format_are_one_file_each(extended: Path) -> None:
    """Listed, found as the newest, looked into: by no more than the two files."""
    done = run_extended(extended, "list", "--root", "tree", "--json")
    assert done.code == 0, done.err
    listed: list[dict[str, Any]] = done.json["checkpoints"]
    assert [(c["ref"], c["layout"], c["bytes"]) for c in listed] == [
        ("base/d3/5", "fake", 10),
        ("base/d3/40", "fake", 45),
        ("base/d3/300", "fake", 54),
    ]
    done = run_extended(extended, "latest", "--root", "tree")
    assert (done.code, done.out) == (0, f"{extended}/tree/base_checkpoints/d3/ck-300.fake\n")
    done = run_extended(extended, "inspect", "tensors", "d3/40", "--root", "tree", "--json", "--hash")
    assert done.code == 0, done.err
    assert done.json["files"][0]["container"] == "fake"
    found = done.json["tensors"][0]
    assert (found["name"], found["dtype"], found["shape"], found["offset"]) == ("fake.weight", "uint8", [40], 5)
    import hashlib

    assert found["sha256"] == hashlib.sha256(bytes(range(40))).hexdigest()
    done = run_extended(extended, "convert", "d3/40", "--root", "tree", "-q", "-o", f"{extended}/out.safetensors")
    assert (done.code, done.out) == (0, f"{extended}/out.safetensors\n"), done.err


def test_prune_refuses_a_layout_without_a_rule(extended: Path) -> None:
    """Who does not say what its files need of each other gets nothing removed, whatever is asked."""
    for arguments in (["--keep", "1", "--yes"], ["--keep", "1", "-n"]):
        done = run_extended(extended, "prune", "--root", "tree", *arguments)
        assert done.code == 4, done.err
        assert "fake" in done.err
    assert sorted(path.name for path in (extended / "tree/base_checkpoints/d3").iterdir()) == [
        "ck-300.fake", "ck-40.fake", "ck-5.fake", "ck-x.fake",
    ]  # fmt: skip
    # The same layout with a rule: one line more, and the older ones go.
    path = extended / "lib/ckpt_cli/layouts/fake.py"
    path.write_text(path.read_text().replace("needs = None", "def needs(checkpoint, run): return ()"))
    done = run_extended(extended, "prune", "--root", "tree", "--keep", "1", "--yes", "--json")
    assert done.code == 0, done.err
    gone = {row["ref"] for group in json.loads(done.out)["groups"] for row in group["remove"]}
    assert gone == {"base/d3/40", "base/d3/5"}
    left = sorted(path.name for path in (extended / "tree/base_checkpoints/d3").iterdir())
    assert left == ["ck-300.fake", "ck-x.fake"]


def test_a_plug_in_that_lacks_a_member_is_named(extended: Path) -> None:
    (extended / "lib/ckpt_cli/formats/fake.py").write_text('NAME = "fake"\n')
    done = run_extended(extended, "inspect", "tensors", "d3/40", "--root", "tree")
    assert done.code == 2
    assert "ckpt_cli.formats.fake lacks matches" in done.err
