"""ckpt verify: damage of every kind is found and told apart, on files that torch wrote; what is whole stays so."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ckpt_cli.checkpoint import Checkpoint, Part
from ckpt_cli.integrity import Job, check_file, kind_of
from ckpt_cli.verify import REMARKS, Result, Unit, unit_of_file, units_of, verify
from tests.conftest import REPOSITORY, Run
from tests.test_architecture import HEAVY, loaded
from tests.torch_files import flip, places

State = dict[str, torch.Tensor]


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wte.weight": torch.randn(6, 4, generator=generator),
        "step": torch.tensor(7),
        "norm.bias": torch.randn(3, generator=generator).to(torch.bfloat16),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(state(), path)
    return path


def done(units: list[Unit], jobs: int = 2) -> list[Result]:
    return [result for one in verify(units, jobs, lambda count: None) for result in one.results]


def look(path: Path) -> Result:
    """The one result of a file that is part of no checkpoint."""
    (result,) = done([unit_of_file(str(path))])
    return result


def codes(result: Result) -> list[tuple[str, str | None]]:
    return [(problem.code, problem.record) for problem in result.problems]


def repacked(path: Path, out: Path, change: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    """The archive written anew with valid checksums: some records changed, those of None left out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", method) as target:
        for info in source.infolist():
            data = change.get(info.filename, source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
    return out


# --- single files


def test_what_torch_writes_is_ok(model: Path) -> None:
    assert look(model) == Result(None, str(model), "ok")


def test_every_bit_of_every_record_counts(model: Path, tmp_path: Path) -> None:
    """Each bit turned round, one at a time: found, and the record named."""
    data = model.read_bytes()
    broken = tmp_path / "broken.pt"
    job = Job(str(broken), "tensors")
    bits = 0
    for name, (first, length) in places(model).items():
        for byte in range(first, first + length):
            for bit in range(8):
                broken.write_bytes(data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :])
                found = check_file(job).problems
                assert (found[0].code, found[0].record) == ("crc-mismatch", name), (name, byte, bit)
                assert name in found[0].detail
                bits += 1
    assert bits > 3000


def legacy(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def tensors_file(path: Path) -> None:
    save_file(state(), path, {"format": "pt"})


@pytest.mark.parametrize("write", [lambda path: torch.save(state(), path), legacy, tensors_file])
def test_a_file_cut_off_anywhere_is_damaged(write: Any, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    write(whole)
    data = whole.read_bytes()
    assert not check_file(Job(str(whole), "tensors")).problems
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        found = check_file(Job(str(cut), "tensors")).problems
        assert found and found[0].code not in REMARKS, length
        if length > 40:
            assert found[0].code == "truncated", (length, found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flips_and_cuts_in_larger_files(data: st.DataObject, tmp_path: Path) -> None:
    sizes = data.draw(st.lists(st.integers(0, 90_000), min_size=1, max_size=6))
    path = tmp_path / "drawn.pt"
    torch.save({"model": [torch.arange(size, dtype=torch.int16) for size in sizes], "step": 3}, path)
    assert check_file(Job(str(path), "tensors")).covered
    records = [(name, *place) for name, place in places(path).items() if place[1]]
    name, first, length = data.draw(st.sampled_from(records))
    byte = first + data.draw(st.integers(0, length - 1))
    flip(path, byte, data.draw(st.integers(0, 7)))
    assert codes(look(path))[0] == ("crc-mismatch", name)
    os.truncate(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    assert look(path).status == "damaged"


def test_every_damaged_record_is_named(model: Path) -> None:
    for name in ("model/data/0", "model/data/2", "model/version"):
        flip(model, places(model)[name][0])
    assert {record for _, record in codes(look(model))} == {"model/data/0", "model/data/2", "model/version"}


def test_damage_is_told_apart(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    (first, length) = places(model)["model/data/0"]

    def made(name: str, content: bytes) -> Result:
        path = tmp_path / name
        path.write_bytes(content)
        return look(path)

    missing = repacked(model, tmp_path / "missing.pt", {"model/data/1": None})
    short = repacked(model, tmp_path / "short.pt", {"model/data/0": data[first : first + length - 4]})
    # This is what makes a short record worse than a missing one: a mapped load takes the bytes that follow.
    assert torch.load(short, mmap=True)["wte.weight"].shape == (6, 4)
    assert codes(look(missing)) == [("missing-record", "model/data/1")]
    unversioned = repacked(model, tmp_path / "unversioned.pt", {"model/version": None})
    with pytest.raises(RuntimeError):  # torch itself does without any other record but the pickle and the storages
        torch.load(unversioned)
    assert codes(look(unversioned)) == [("missing-record", "model/version")]
    code = b"cos\nsystem\n(S'true'\ntR."
    worse = repacked(model, tmp_path / "worse.pt", {"model/version": None, "model/data.pkl": code})
    assert codes(look(worse))[0][0] == "runs-code"
    assert codes(made("stub.safetensors", (88).to_bytes(8, "little"))) == [("truncated", None)]
    assert codes(look(short)) == [("short-record", "model/data/0")]
    assert codes(made("empty.pt", b"")) == [("empty-file", None)]
    assert codes(made("cut.pt", data[:-30])) == [("truncated", None)]
    assert codes(made("zeros.pt", bytes(len(data)))) == [("truncated", None)]
    assert codes(made("text.pt", b"hello, this is no checkpoint")) == [("not-a-checkpoint", None)]
    assert codes(made("lfs.pt", b"version https://git-lfs.github.com/spec/v1\n")) == [("not-a-checkpoint", None)]
    header = first - 64 - len("model/data/0")
    assert data.index(b"PK\3\4", header - 64) < first
    at = data.rindex(b"PK\3\4", 0, first)
    assert codes(made("header.pt", data[:at] + b"XX" + data[at + 2 :])) == [("bad-header", "model/data/0")]
    evil = repacked(model, tmp_path / "evil.pt", {"model/data.pkl": code})
    assert codes(look(evil))[0][0] in ("runs-code", "bad-structure")
    assert codes(look(tmp_path / "gone.pt")) == [("unreadable-part", None)]
    assert all(look(path).status == "damaged" for path in (missing, short, evil, tmp_path / "gone.pt"))


def test_what_would_run_code_is_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    result = look(tmp_path / "evil.pt")
    assert codes(result) == [("runs-code", None)] and result.status == "damaged"


def test_entries_that_readers_differ_on_are_refused(model: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.pt"
    shutil.copy(model, twice)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/data/0", bytes(96))
    assert codes(look(twice)) == [("bad-structure", None)]


def test_compressed_records_are_unpacked_and_checked(model: Path, tmp_path: Path) -> None:
    content = bytes(range(32)) * 3
    packed = repacked(model, tmp_path / "packed.pt", {"model/data/0": content}, zipfile.ZIP_DEFLATED)
    assert look(packed).status == "ok"
    data = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo("model/data/0")
    start, end = (info.header_offset + 30 + len(info.filename) + length for length in (0, info.compress_size))
    for byte, bit in ((byte, bit) for byte in range(start, end) for bit in range(8)):
        packed.write_bytes(data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :])
        found = look(packed)
        if found.status == "ok":  # the stream's last bits are filling: it unpacks to the same
            assert zipfile.ZipFile(packed).read("model/data/0") == content
        else:
            assert found.status == "damaged" and found.problems[0].record == "model/data/0", (byte, bit, found)


@pytest.mark.parametrize("write", [legacy, tensors_file])
def test_what_has_no_checksum_cannot_be_verified(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "whole.pt")
    assert look(tmp_path / "whole.pt") == Result(None, str(tmp_path / "whole.pt"), "unverifiable")


def test_a_torch_file_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert look(tmp_path / "model.pt") == Result(None, str(tmp_path / "model.pt"), "unverifiable")


def test_storages_that_torch_was_told_to_skip(tmp_path: Path) -> None:
    with torch.serialization.skip_data():
        torch.save(state(), tmp_path / "model.pt")
    result = look(tmp_path / "model.pt")
    assert result.status == "unverifiable"
    assert {("skipped-data", f"model/data/{key}") for key in range(3)} <= set(codes(result))


def test_bytes_behind_the_archive_are_told(model: Path) -> None:
    model.write_bytes(model.read_bytes() + b"something else")
    result = look(model)
    assert result.status == "unverifiable" and codes(result) == [("oddity", None)]


# --- checkpoints of several files


def test_a_tree_with_damage(tree: Path, call: Run) -> None:
    """What `ckpt demo` breaks on purpose, and nothing else."""
    found = call("verify", "--root", tree, "--json")
    results = found.json["results"]
    assert (found.code, found.json["ok"], found.json["command"]) == (1, False, "verify")
    assert [r["ref"] for r in results if r["status"] == "damaged"] == ["base/d4/50", "base/d6/100"]
    (flipped,), (missing,) = (r["problems"] for r in results if r["status"] == "damaged")
    assert flipped["code"] == "crc-mismatch" and flipped["record"] == "model_000050/data/7"
    assert missing["code"] == "missing-part" and missing["path"].endswith("optim_000100_rank1.pt")
    assert {r["status"] for r in results if r["path"].endswith(".json")} == {"unverifiable"}
    assert call("verify", "--root", tree, "-q").out.split() == ["base/d4/50", "base/d6/100"]
    assert call("verify", "base/d4/100", "--root", tree).code == 0
    assert call("verify", "base/d4/100", "--root", tree, "--strict").code == 1


def test_the_number_of_jobs_changes_nothing(tree: Path, call: Run) -> None:
    one, many = (call("verify", "--root", tree, "--json", "--jobs", n).out for n in (1, 4))
    assert one == many


def test_a_table_shows_what_is_not_in_order(tree: Path, call: Run) -> None:
    found = call("verify", "--root", tree, "--format", "table")
    assert [line.split()[0] for line in found.out.splitlines()] == ["REF", "base/d4/50", "base/d6/100"]
    assert "8 whole, but without a checksum" in found.err
    plain = call("verify", "--root", tree).out.splitlines()
    assert len(plain) == 29 and all(line.count("\t") == 3 for line in plain)
    assert call("verify", "sft", "--root", tree, "--format", "table").out == ""
    os.truncate(tree / "chatsft_checkpoints/d4/model_000040.pt", 1000)
    found = call("verify", "sft", "--root", tree, "--format", "table")
    assert " damaged  truncated: the end of its zip archive is missing" in found.out


def test_what_is_still_written_is_skipped(tree: Path, call: Run) -> None:
    os.utime(tree / "base_checkpoints/d6/model_000100.pt")
    found = call("verify", "base/d6/100", "--root", tree, "--json")
    assert found.code == 0 and [r["status"] for r in found.json["results"]] == ["skipped"]
    assert "base/d6/100" in found.err
    found = call("verify", "base/d6/100", "--root", tree, "--record")
    assert found.code == 0 and not list(tree.rglob("*.sha256"))


def test_a_file_that_is_named_is_looked_at(tree: Path, tmp_path: Path, call: Run) -> None:
    """However new it is: an empty file is damage to who asks about it, and no checkpoint that may yet be whole."""
    (tmp_path / "model.pt").touch()
    found = call("verify", tmp_path / "model.pt", "--json")
    assert found.code == 1 and [p["code"] for r in found.json["results"] for p in r["problems"]] == ["empty-file"]
    model = tree / "base_checkpoints/d6/model_000100.pt"
    os.utime(model)
    found = call("verify", model, "--record", "--json")
    assert (found.code, found.json["recorded"]) == (0, []) and "still being written" in found.err
    assert [(r["path"], r["status"]) for r in found.json["results"]] == [(str(model), "ok")]


def test_wrong_calls(tree: Path, tmp_path: Path, call: Run) -> None:
    assert call("verify", "d99", "--root", tree).code == 2
    assert call("verify", tmp_path / "none.pt").code == 2
    assert call("verify", "--root", tree, "--force").code == 2
    assert call("verify", "--root", tree, "--jobs", 0).code == 2
    (tmp_path / "bare").mkdir()
    nothing = call("verify", "--root", tmp_path / "bare", "--json")
    assert nothing.code == 1 and nothing.json["results"] == [] and nothing.json["ok"] is False


def edit(path: Path, **changes: Any) -> None:
    meta = json.loads(path.read_text())
    for key, value in changes.items():
        (meta["model_config"] if key in meta["model_config"] else meta)[key] = value
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": 51}, "step"),
        ({"vocab_size": 999}, "vocab_size"),
        ({"n_layer": 3}, "layer"),
        ({"n_layer": 5}, "layer 4"),
        ({"n_embd": 96}, "width"),
        ({"n_kv_head": 1}, "n_kv_head"),
        ({"step": None}, None),
        ({"vocab_size": "many"}, None),
    ],
)
def test_metadata_is_held_against_the_model(tree: Path, call: Run, changes: Any, said: str | None) -> None:
    edit(tree / "base_checkpoints/d4/meta_000150.json", **changes)
    found = call("verify", "base/d4/150", "--root", tree, "--json")
    problems = [problem for result in found.json["results"] for problem in result["problems"]]
    if said is None:
        assert found.code == 0 and problems == []
    else:
        assert found.code == 1 and {p["code"] for p in problems} == {"meta-mismatch"}
        assert all(said in p["detail"] or "n_head" in p["detail"] for p in problems)


@pytest.mark.parametrize(("vocabulary", "code"), [(128, 0), (127, 0), (65, 0), (64, 1), (129, 1)])
def test_a_padded_vocabulary_is_no_mismatch(tmp_path: Path, call: Run, vocabulary: int, code: int) -> None:
    """The trainer pads it to a multiple of 64; its metadata has the number before."""
    run = tmp_path / "d2"
    run.mkdir()
    torch.save({"transformer.wte.weight": torch.ones(128, 4)}, run / "model_000003.pt")
    meta = {"step": 3, "model_config": {"vocab_size": vocabulary, "n_embd": 4}}
    (run / "meta_000003.json").write_text(json.dumps(meta))
    assert call("verify", run).code == code


def test_metadata_that_breaks_off(tree: Path, call: Run) -> None:
    path = tree / "base_checkpoints/d4/meta_000150.json"
    path.write_text(path.read_text()[:-5])
    os.utime(path, (0, 0))
    found = call("verify", "base/d4/150", "--root", tree, "--json")
    broken = [r for r in found.json["results"] if r["status"] == "damaged"]
    assert found.code == 1 and [[p["code"] for p in r["problems"]] for r in broken] == [["bad-meta"]]


# --- an index and its shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder as transformers writes it; tied tensors share their bytes and count once."""
    halves = [{"a.weight": torch.ones(4, 2), "b.weight": torch.ones(3)}, {"c.weight": torch.ones(5)}]
    placed = {}
    for number, half in enumerate(halves, 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file(half, tmp_path / name)
        placed.update(dict.fromkeys(half, name))
    index = {"metadata": {"total_size": 64}, "weight_map": placed}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def sharded(folder: Path) -> list[Result]:
    """The folder as a checkpoint: an index, and the shards that are there."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    parts = tuple(
        Part("index" if path.suffix == ".json" else "model", str(path), path.stat().st_size, 0) for path in paths
    )
    return done(units_of([Checkpoint("made", None, "run", None, None, "run", str(folder), parts)]))


def change_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_an_index_that_fits_its_shards(shards: Path) -> None:
    assert [result.status for result in sharded(shards)] == ["unverifiable"] * 3
    assert not any(result.problems for result in sharded(shards))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda i: i["weight_map"].update({"d.weight": "model-00002-of-00002.safetensors"}), "index-mismatch"),
        (lambda i: i["weight_map"].update({"c.weight": "model-00003-of-00003.safetensors"}), "missing-part"),
        (lambda i: i["weight_map"].update({"c.weight": "../elsewhere.safetensors"}), "bad-structure"),
        (lambda i: i["weight_map"].update({"c.weight": 3}), "bad-structure"),
        (lambda i: i["weight_map"].pop("b.weight"), "unlisted-tensor"),
        (lambda i: i["metadata"].update(total_size=65), "index-size"),
    ],
)
def test_an_index_that_does_not_fit(shards: Path, change: Any, code: str) -> None:
    change_index(shards, change)
    found = [problem.code for result in sharded(shards) for problem in result.problems]
    assert code in found and set(found) <= {code, "unlisted-tensor"}
    assert any(result.status == "damaged" for result in sharded(shards)) == (code not in REMARKS)


def test_an_index_that_breaks_off_is_said_as_one(shards: Path) -> None:
    """By the code that a listing of it has too."""
    path = shards / "model.safetensors.index.json"
    path.write_text(path.read_text()[:40])
    assert [problem.code for result in sharded(shards) for problem in result.problems] == ["bad-index"]


def test_an_index_alone_asks_for_its_shards(shards: Path) -> None:
    unit = unit_of_file(str(shards / "model.safetensors.index.json"))
    assert [result.status for result in done([unit])] == ["unverifiable"]
    (shards / "model-00002-of-00002.safetensors").unlink()
    index, lost = done([unit])
    assert index.status == "unverifiable" and codes(lost) == [("missing-part", None)]


def test_configuration_of_a_published_model(shards: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.ones(8, 4)}, shards / "model.safetensors")
    paths = {"config": shards / "config.json", "model": shards / "model.safetensors"}
    for vocabulary, status in ((8, "unverifiable"), (7, "damaged")):
        paths["config"].write_text(json.dumps({"vocab_size": vocabulary, "hidden_size": 4}))
        parts = tuple(Part(role, str(path), 1, 0) for role, path in paths.items())  # type: ignore[arg-type]
        made = Checkpoint("made", None, "run", None, None, "run", str(shards), parts)
        assert done(units_of([made]))[0].status == status


# --- distributed checkpoints


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_archives_within_a_data_file(tmp_path: Path, call: Run) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = tmp_path / "run" / "saved"
    save({"model": state(), "step": 5}, checkpoint_id=str(folder), no_dist=True)
    assert call("verify", folder).code == 0
    (data,) = folder.glob("*.distcp")
    whole = data.read_bytes()
    place = whole.index(state()["wte.weight"].numpy().tobytes())
    data.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    (broken,) = [r for r in call("verify", folder, "--json").json["results"] if r["status"] == "damaged"]
    assert broken["path"] == str(data) and "model.wte.weight" in broken["problems"][0]["record"]
    assert [p["code"] for p in broken["problems"]] == ["crc-mismatch"]
    pickle = whole.index(b"data.pkl") + len(b"data.pkl")
    pickle = whole.index(b"\x80\x02", pickle)
    data.write_bytes(whole[:pickle] + bytes([whole[pickle] ^ 4]) + whole[pickle + 1 :])
    (broken,) = [r for r in call("verify", folder, "--json").json["results"] if r["status"] == "damaged"]
    assert [p["code"] for p in broken["problems"]] == ["crc-mismatch"] and "data.pkl" in broken["problems"][0]["record"]
    data.write_bytes(whole)
    index = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(index.replace(b"float32", b"float64"))  # each as long as before
    (broken,) = [r for r in call("verify", folder, "--json").json["results"] if r["status"] == "damaged"]
    assert {p["code"] for p in broken["problems"]} == {"index-mismatch"}
    assert any("model.wte.weight" in p["detail"] for p in broken["problems"])
    (folder / ".metadata").write_bytes(index)
    data.write_bytes(whole[:-1])
    found = call("verify", folder, "--json").json["results"]
    assert {p["code"] for r in found for p in r["problems"]} == {"truncated"}
    data.unlink()
    os.utime(folder / ".metadata", (0, 0))  # else it would still be written
    assert call("verify", folder / ".metadata", "--json").json["ok"] is False


# --- manifests


def sums(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("sha256sum"):
        pytest.skip("sha256sum is not installed")
    return subprocess.run(["sha256sum", "-c", name], cwd=folder, capture_output=True, text=True)


def test_a_manifest_is_read_by_sha256sum(tree: Path, call: Run) -> None:
    folder = tree / "base_checkpoints/d4"
    recorded = call("verify", "base/d4/150", "--root", tree, "--record", "--json")
    assert recorded.code == 0 and recorded.json["recorded"] == [str(folder / "model_000150.pt.sha256")]
    checked = sums(folder, "model_000150.pt.sha256")
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 4
    assert not list(folder.glob(".ckpt-*"))
    again = call("verify", "base/d4/150", "--root", tree, "--strict", "--json")
    assert again.code == 0 and {r["status"] for r in again.json["results"]} == {"ok"}
    assert call("verify", "base/d4/150", "--root", tree, "--record").code == 0


def test_what_a_manifest_finds(tree: Path, call: Run) -> None:
    folder = tree / "base_checkpoints/d4"
    call("verify", "base/d4/150", "--root", tree, "--record")
    meta, shard = folder / "meta_000150.json", folder / "optim_000150_rank0.pt"
    meta.write_text(meta.read_text().replace(" ", "", 1))
    found = call("verify", "base/d4/150", "--root", tree, "--json")
    (changed,) = [r for r in found.json["results"] if r["status"] == "damaged"]
    assert changed["path"] == str(meta) and [p["code"] for p in changed["problems"]] == ["manifest-mismatch"]
    assert sums(folder, "model_000150.pt.sha256").returncode == 1
    refused = call("verify", "base/d4/150", "--root", tree, "--record", "--json")
    assert refused.code == 4 and refused.out == "" and "--force" in refused.err
    forced = call("verify", "base/d4/150", "--root", tree, "--record", "--force")
    assert forced.code == 0 and sums(folder, "model_000150.pt.sha256").returncode == 0
    flip(shard, places(shard)["optim_000150_rank0/data/0"][0])
    found = call("verify", "base/d4/150", "--root", tree, "--json")
    (broken,) = [r for r in found.json["results"] if r["status"] == "damaged"]
    assert [p["code"] for p in broken["problems"]] == ["crc-mismatch", "manifest-mismatch"]
    assert call("verify", "base/d4/150", "--root", tree, "--record", "--force").code == 1


def test_a_listed_file_that_is_gone(model: Path, call: Run) -> None:
    assert call("verify", model, "--record").code == 0
    manifest = model.with_name("model.pt.sha256")
    manifest.write_text(manifest.read_text() + f"{'0' * 64}  gone.pt\n")
    found = done([unit_of_file(str(model))])
    assert [(r.status, codes(r)) for r in found] == [("ok", []), ("damaged", [("manifest-missing-file", None)])]


def test_nothing_is_recorded_of_what_is_damaged(tree: Path, call: Run) -> None:
    for ref in ("base/d4/50", "base/d6/100"):
        found = call("verify", ref, "--root", tree, "--record")
        assert found.code == 1 and "no manifest" in found.err
    assert not list(tree.rglob("*.sha256"))


def test_a_whole_tree_is_recorded(tree: Path, call: Run) -> None:
    assert call("verify", "--root", tree, "--record", "--json").code == 1
    assert len(list(tree.rglob("*.sha256"))) == 6
    listed = call("list", "--root", tree, "--json").json["checkpoints"]
    assert sum(part["role"] == "manifest" for c in listed for part in c["parts"]) == 6


def test_a_manifest_goes_with_its_checkpoint(tree: Path, call: Run) -> None:
    call("verify", "mid", "--root", tree, "--record")
    call("verify", "base/d4", "--root", tree, "--record")
    assert len(list((tree / "base_checkpoints/d4").glob("*.sha256"))) == 2
    assert call("prune", "base/d4", "--root", tree, "--keep", 1, "-y").code == 0
    assert [path.name for path in (tree / "base_checkpoints/d4").glob("*.sha256")] == ["model_000150.pt.sha256"]
    assert list((tree / "mid_checkpoints/d4").glob("*.sha256"))


def test_where_a_manifest_lies(tmp_path: Path) -> None:
    from ckpt_cli import manifest

    folder, up = str(tmp_path / "run" / "checkpoint-5"), str(tmp_path / "run")
    model, state, config = (
        Part("model", f"{folder}/model.safetensors", 1, 0),
        Part("optimizer", f"{folder}/optimizer.pt", 1, 0),
        Part("config", f"{folder}/config.json", 1, 0),
    )
    made = Checkpoint("made", None, "run", 5, "step", "checkpoint-5", folder, ())
    own, beside = f"{folder}/ckpt.sha256", f"{folder}/model.safetensors.sha256"
    run = made._replace(name="run", step=None)
    step = made._replace(home=up)
    cases: list[tuple[Checkpoint, tuple[Part, ...], str | None]] = [
        (made, (model,), beside),
        (made, (model, state), beside),
        (made, (model, model._replace(path=f"{folder}/other.safetensors"), config), beside),
        (made, (model._replace(rank=0),), own),
        (step, (model,), own),
        (step, (model, state), own),
        (step._replace(name="epoch=1-loss=0.5"), (model,), beside),
        (run, (model,), beside),
        (run, (model, config), own),
        (run, (model, model), own),
        (run, (state,), f"{folder}/optimizer.pt.sha256"),
        (run, (model, state, Part("manifest", "there.sha256", 1, 0)), "there.sha256"),
        (run, (), None),
    ]
    for checkpoint, parts, place in cases:
        assert manifest.place_of(checkpoint._replace(parts=parts)) == place, (checkpoint, parts)


REAL_RUNS = ("trainer", "hf", "dcp", "lightning", "gpt2", "torchtune", "meta", "nanochat/a1_v1_oct2025")


@pytest.mark.parametrize("name", REAL_RUNS)
def test_every_layout_takes_its_manifest_along(shared: Path, tmp_path: Path, call: Run, name: str) -> None:
    """Recorded, found again as a part of the same checkpoint, matching, and read by sha256sum."""
    root = tmp_path / "copy"
    shutil.copytree(shared / "real" / name, root)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (0, 0))
    recorded = call("verify", "--root", root, "--record", "--json").json["recorded"]
    assert recorded
    listed = call("list", "--root", root, "--json").json["checkpoints"]
    assert sorted(recorded) == sorted(p["path"] for c in listed for p in c["parts"] if p["role"] == "manifest")
    for place in recorded[:5]:
        assert sums(Path(place).parent, Path(place).name).returncode == 0
    again = call("verify", "--root", root, "--json").json["results"]
    names = {os.path.join(os.path.dirname(m), line[66:]) for m in recorded for line in Path(m).read_text().splitlines()}
    assert {r["status"] for r in again if r["path"] in names} == {"ok"}


@pytest.mark.parametrize(
    "name", ["plain.pt", "back\\slash.pt", "new\nline.pt", "s p a c e.pt", "ümläut.pt", "*star.pt"]
)
def test_names_are_escaped_as_sha256sum_does(tmp_path: Path, call: Run, name: str) -> None:
    path = tmp_path / name
    torch.save(state(), path)
    assert call("verify", path, "--record").code == 0
    manifest = tmp_path / f"{name}.sha256"
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", name], cwd=tmp_path, capture_output=True)
        assert manifest.read_bytes() == done.stdout
    assert hashlib.sha256(path.read_bytes()).hexdigest() in manifest.read_text()
    assert call("verify", path, "--json").json["results"][0]["status"] == "ok"
    flip(path, places(path)[f"{Path(name).stem}/version"][0] if name == "plain.pt" else 40)
    assert call("verify", path).code == 1


@pytest.mark.parametrize(
    "text",
    ["garbage\n", "", f"{'0' * 64}  ../../outside\n", f"{'0' * 64}  /etc/passwd\n", f"{'0' * 64}  link/passwd\n",
     f"{'0' * 64}  a/../../b\n", f"{'0' * 64}  x\n{'1' * 64}  x\n", f"{'0' * 63}g  x\n", "\0" * 100],
)  # fmt: skip
def test_a_manifest_is_not_trusted(model: Path, text: str, tmp_path: Path, call: Run) -> None:
    (tmp_path / "link").symlink_to("/etc")
    model.with_name("model.pt.sha256").write_text(text)
    found = call("verify", model, "--json")
    assert found.code == 1
    assert [p["code"] for r in found.json["results"] for p in r["problems"]] == ["bad-manifest"]
    assert [r["status"] for r in found.json["results"]] == ["ok", "damaged"]


def test_a_listed_link_is_not_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pt").symlink_to("/etc/passwd")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    model.with_name("model.pt.sha256").write_text(f"{digest}  model.pt\n{'0' * 64}  other.pt\n")
    assert [(result.path, result.status) for result in done([unit_of_file(str(model))])] == [(str(model), "ok")]


def test_records_and_digest_in_one_pass(tmp_path: Path) -> None:
    """The same CRC verdicts and the real sha256, whatever lies between the records."""
    path = tmp_path / "model.pt"
    torch.save([torch.arange(300_000 + i) for i in range(5)], path)
    found = check_file(Job(str(path), "tensors", digest=True))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and found.covered
    flip(path, places(path)["model/data/3"][0] + 2_000_000)
    found = check_file(Job(str(path), "tensors", digest=True))
    assert [p.record for p in found.problems] == ["model/data/3"]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# --- as a process


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.pt"
    torch.save({str(i): torch.full((1 << 23,), float(i)) for i in range(8)}, path)  # 256 MiB
    return path


PEAK = """
import resource, sys
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from ckpt_cli.app import main
code = main(sys.argv[1:])
print(code, own, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("options", [[], ["--jobs", "8"], ["--record"]])
def test_memory_does_not_grow_with_the_file(large: Path, options: list[str]) -> None:
    # A child counts the peak of what it was forked from: here a shell's, not that of this process with torch in it.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", PEAK, "verify", str(large), *options]
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    large.with_name("model.pt.sha256").unlink(missing_ok=True)
    code, own, peak = map(int, child.stdout.split()[-3:])
    assert code == 0
    assert own < 40 << 10 and peak < 64 << 10


def test_nothing_heavy_is_loaded(demo_tree: Path, tmp_path: Path) -> None:
    found, modules = loaded([["verify", "sft", "--root", str(demo_tree)], ["verify", "--help"]], tmp_path)
    assert found == [0, 0] and HEAVY & modules == set()


def test_shared_lanes_find_the_same(large: Path) -> None:
    first, length = places(large)["model/data/6"]
    flip(large, first + length - 1)
    try:
        for lanes in (1, 2, 5):
            found = check_file(Job(str(large), "tensors", lanes=lanes))
            assert [p.record for p in found.problems] == ["model/data/6"]
    finally:
        flip(large, first + length - 1)


SLOW = """
import sys, time
import ckpt_cli.integrity as integrity
from ckpt_cli.app import main
real = integrity.FileSource.read_into
def slow(self, offset, buffer):
    if len(buffer) > 1000:
        print("reading", flush=True)
        time.sleep(0.1)
    return real(self, offset, buffer)
integrity.FileSource.read_into = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_an_interrupt_ends_it_at_once(large: Path, jobs: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, "verify", str(large), "--jobs", jobs],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 130 and said == "error: interrupted\n"
    assert time.monotonic() - begin < 3  # all of it would take 26 seconds and more


# --- real files

DAMAGED = {
    "zoo/damaged-bitflip.pt": ("crc-mismatch", "plain/data/0"),
    "zoo/damaged-empty.pt": ("empty-file", None),
    "zoo/damaged-lfs-pointer.pt": ("not-a-checkpoint", None),
    "zoo/damaged-missing-storage.pt": ("missing-record", "plain/data/1"),
    "zoo/damaged-truncated.pt": ("truncated", None),
    "zoo/hostile-exec.pt": ("runs-code", None),
}


def test_the_zoo(shared: Path) -> None:
    for name, problem in DAMAGED.items():
        result = look(shared / "real" / name)
        assert result.status == "damaged" and codes(result) == [problem], name


def test_no_whole_file_is_called_damaged(shared: Path) -> None:
    """Every file that a trainer or a library wrote, one by one; the library's own list of bad ones apart."""
    found = {}
    for path in sorted((shared / "real").rglob("*")):
        name = str(path.relative_to(shared / "real"))
        if not path.is_file() or name in DAMAGED or re.match(r"safetensors-cases/(bad|maybe)-", name):
            continue
        kind = kind_of(name)
        if kind == "tensors" and path.suffix not in (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".metadata"):
            continue
        result = done([unit_of_file(str(path))])
        found[name] = {r.status for r in result} | {p.code for r in result for p in r.problems}
    odd = {name: what for name, what in found.items() if not what <= {"ok", "unverifiable"}}
    odd.pop("zoo/torchscript.pt", None)  # a program, which the formats may refuse
    assert odd == {} and len(found) > 300


def test_no_whole_checkpoint_is_called_damaged(shared: Path, call: Run) -> None:
    found = call("verify", "--root", shared / "real", "--json")
    bad = [r for r in found.json["results"] if r["status"] == "damaged"]
    names = [os.path.relpath(r["path"], shared / "real") for r in bad]
    expected = {*DAMAGED, "dcp/interrupted-no-metadata/.metadata", "zoo/torchscript.pt"}
    assert {name for name in names if "safetensors-cases/" not in name} <= expected


def test_hostile_files_are_refused(shared: Path, call: Run) -> None:
    """All that is to be rejected is damaged, with exit code 1 and without a traceback."""
    rows = [line.split("\t") for line in (shared / "hostile/MANIFEST.tsv").read_text().splitlines()[1:]]
    rejected = [row[0] for row in rows if row[3].startswith(("reject", "refuse")) and " or " not in row[3]]
    assert len(rejected) > 40
    for name in rejected:
        result = done([unit_of_file(str(shared / "hostile" / name))])
        assert any(r.status == "damaged" for r in result), name
    for name in rejected[::8]:
        assert call("verify", shared / "hostile" / name).code == 1, name
