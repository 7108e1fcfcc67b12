"""Archives of one shape in a file: what is found wrong with one is the same whether or not another was learnt from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckpt_cli import integrity, room
from ckpt_cli.formats import FileSource, Window, torch_zip
from ckpt_cli.integrity import Checked, Job, check_file, slices_of
from ckpt_cli.slices import Archive, Kinds, Slice
from tests.conftest import Run
from tests.test_dcp import write

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = {f"w{n}": torch.full((3, 4), n / 7) for n in range(COUNT)}
    return write(tmp_path / "run", state)


def sliced(folder: Path) -> tuple[Path, tuple[Slice, ...]]:
    ((path, found),) = slices_of(str(folder / ".metadata"))[0].items()
    return Path(path), tuple(found)


def checked(path: Path, slices: tuple[Slice, ...]) -> Checked:
    return check_file(Job(str(path), "tensors", slices=slices))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The archives that are looked into one by one."""
    seen: list[str | None] = []
    real = integrity._records

    def records(archive: Archive) -> object:
        seen.append(archive.name)
        return real(archive)

    monkeypatch.setattr(integrity, "_records", records)
    return seen


@pytest.fixture
def without_crc() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def test_one_of_a_kind_is_read(folder: Path, reads: list[str | None]) -> None:
    path, slices = sliced(folder)
    assert len(slices) == COUNT
    done = checked(path, slices)
    assert done.covered and not done.problems and reads == [slices[0].name]


def test_archives_without_checksums(without_crc: None, tmp_path: Path, reads: list[str | None]) -> None:
    """None is covered, learnt or not."""
    state = {f"w{n}": torch.full((3, 4), n / 7) for n in range(COUNT)}
    write(tmp_path, state)
    path, slices = sliced(tmp_path)
    done = checked(path, slices)
    assert not done.covered and not done.problems and len(reads) == 1


def test_every_byte_of_one_that_is_like_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of each is flipped: the same problems as when it is read by itself, and never none."""
    path, slices = sliced(folder)
    pair, sound = (slices[0], slices[7]), path.read_bytes()
    told = []
    for learning in (True, False):
        if not learning:
            monkeypatch.setattr(Kinds, "records", lambda *_: None)
        with open(path, "r+b", buffering=0) as file:
            for place in range(pair[1].offset, pair[1].offset + pair[1].bytes):
                os.pwrite(file.fileno(), bytes([sound[place] ^ 1 << place % 8]), place)
                told.append(checked(path, pair).problems)
                os.pwrite(file.fileno(), sound[place : place + 1], place)
    assert len(told) == 2 * pair[1].bytes and told[: pair[1].bytes] == told[pair[1].bytes :]
    with FileSource(str(path)) as source:
        records = list(torch_zip.records(Window(source, pair[1].offset, pair[1].bytes)).found)
    assert len(records) == 7
    for record in records:  # between them is padding, of which no reader takes notice
        assert all(told[record.offset : record.offset + record.bytes]), record.name


def test_what_is_damaged_teaches_nothing(folder: Path, reads: list[str | None]) -> None:
    """A record that nobody needs is not what its CRC32 says, and is the same in both archives."""
    path, slices = sliced(folder)
    data = bytearray(path.read_bytes())
    for piece in slices[:2]:
        place = data.index(b"little", piece.offset)
        data[place : place + 6] = b"litUle"
    path.write_bytes(data)
    done = checked(path, slices)
    assert {problem.record for problem in done.problems} == {f"{s.name}: archive/byteorder" for s in slices[:2]}
    assert reads == [piece.name for piece in slices[:3]]


def test_archives_that_all_differ(tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked into; of a small file not without end."""
    state = {f"w{n}": torch.zeros(n + 1) for n in range(COUNT)}
    write(tmp_path, state)
    assert call("verify", tmp_path / ".metadata").code == 0
    path, slices = sliced(tmp_path)
    monkeypatch.setattr(room, "_ROOM", 100_000)
    (problem,) = checked(path, slices).problems
    assert problem.code == "too-costly" and "no two are alike" in problem.detail
    monkeypatch.setenv("CKPT_MEMORY", "1")
    assert not checked(path, slices).problems
