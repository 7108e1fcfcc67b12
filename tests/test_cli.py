"""What a user may rely on: options, exit codes, JSON, what goes to stdout and what to stderr."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_cli.app import COMMANDS
from ckpt_cli.errors import EXIT_CODES, counted
from tests.conftest import REPOSITORY, Run

CHECKPOINT_KEYS = [
    "ref", "layout", "source", "tag", "step", "unit", "dir", "state", "resumable", "problems", "bytes", "modified",
    "metric", "ranks", "parts",
]  # fmt: skip


def digest(tensor: torch.Tensor) -> str:
    """sha256 of the contiguous little-endian bytes, as torch has them."""
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def test_list_json(demo_tree: Path, call: Run) -> None:
    done = call("list", demo_tree, "--json")
    assert done.code == 0 and done.out.isascii() and done.out.count("\n") == 1
    body = done.json
    assert list(body)[:2] == ["schema_version", "command"] and body["schema_version"] == 1
    assert body["command"] == "list" and body["root"] == os.path.realpath(demo_tree)
    states = {c["ref"]: c["state"] for c in body["checkpoints"]}
    lost = "base/d6/100"
    assert {ref for ref, state in states.items() if state != "complete"} == {lost}
    assert body["totals"] == {"checkpoints": len(states), "bytes": sum(c["bytes"] for c in body["checkpoints"])}
    for checkpoint in body["checkpoints"]:
        assert list(checkpoint)[: len(CHECKPOINT_KEYS)] == CHECKPOINT_KEYS
        assert checkpoint["bytes"] == sum(os.stat(part["path"]).st_size for part in checkpoint["parts"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", checkpoint["modified"])
    (problem,) = next(c for c in body["checkpoints"] if c["ref"] == lost)["problems"]
    assert sorted(problem) == ["code", "detail", "path"] and problem["code"] == "missing-part"


def test_list_formats(demo_tree: Path, call: Run) -> None:
    """Plain is one record a line with tabs; a table in a pipe is aligned and uncut; names are refs."""
    refs = [c["ref"] for c in call("list", demo_tree, "--json").json["checkpoints"]]
    assert call("list", demo_tree, "-q").out.split() == refs
    plain = [line.split("\t") for line in call("list", demo_tree).out.splitlines()]
    assert [line[0] for line in plain] == refs and {len(line) for line in plain} == {6}
    table = call("list", demo_tree, "--format", "table").out.splitlines()
    assert table[0].startswith("REF") and [line.split()[0] for line in table[1:]] == refs
    assert "\x1b" not in "".join(table)


def test_list_options(demo_tree: Path, call: Run) -> None:
    def refs(*options: object) -> list[str]:
        return call("list", demo_tree, "-q", *options).out.split()

    everything = refs()
    assert refs("--state", "incomplete") == ["base/d6/100"]
    assert refs("--before", 100, "-i", "base") == ["base/d4/50", "base/d6/50"]
    assert refs("--after", 100, "-g", "d6") == ["base/d6/150"]
    assert refs("--reverse") == everything[::-1]
    assert refs("--limit", 2) == everything[:2]
    assert refs("--sort", "size")[-1].startswith("base/d6")
    assert refs("-i", "base", "--sort", "metric")[0] == "base/d4/150"
    assert refs("-s", "latest", "-i", "base") == ["base/d4/150", "base/d6/150"]


def test_nothing_found_is_one(tmp_path: Path, demo_tree: Path, call: Run) -> None:
    for arguments in (["list", tmp_path], ["list", demo_tree, "--state", "in-progress"], ["latest", tmp_path]):
        done = call(*arguments)
        assert (done.code, done.out) == (1, "") and done.err.startswith("error: ") and "\nhint: " in done.err
    assert call("list", tmp_path, "--json").json["checkpoints"] == []
    assert call("latest", tmp_path, "--json").json["checkpoint"] is None
    assert call("prune", tmp_path, "--keep", 1, "--json").json["groups"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--root", "/nowhere/at/all"],
        ["list", "no-such-run"],
        ["latest", "--field", "colour"],
        ["list", "--format", "xml"],
        ["list", "--json", "-q"],
        ["list", "--nonsense"],
        ["list", "--limit", "many"],
        ["nonsense"],
        ["inspect", "nonsense"],
        ["inspect", "meta", "-q"],
        ["inspect", "tensors", "./nothing.pt"],
        ["inspect", "meta", "--key", "no.such.key"],
        ["prune"],
        ["prune", "--keep", "-1"],
        ["prune", "--keep", "1", "-s", "100"],
        ["prune", "--undo", "--purge"],
        ["prune", "--undo", "--keep", "1"],
        ["prune", "--undo", "--id", "no-such-id"],
        ["convert", "--to", "onnx"],
        ["convert", "-o", "/nowhere/at/all/x.safetensors"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_two(demo_tree: Path, call: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """One sentence and a hint on stderr, nothing on stdout, also with --json."""
    monkeypatch.setenv("CKPT_ROOT", str(demo_tree))
    for extra in ([], ["--json"]):
        if extra and (arguments[-1] in ("-q", "--nonsense", "nonsense") or "--json" in arguments):
            continue
        done = call(*arguments, *extra)
        assert (done.code, done.out) == (2, ""), done
        lines = [line for line in done.err.splitlines() if not line.startswith(("note: ", "root: "))]
        assert lines[0].startswith("error: ") and not lines[0].endswith(".")
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: "))


def test_typo_of_a_command_and_option(call: Run) -> None:
    assert "hint: did you mean list" in call("lst").err
    assert "hint: did you mean --json" in call("list", "--jsn").err


def test_a_value_of_another_type(call: Run) -> None:
    done = call("list", "--limit", "many")
    assert done.code == 2 and done.err.startswith("error: invalid value for '--limit': 'many' is no whole number\n")
    assert "'--timeout': 'long' is no number" in call("load-test", "--timeout", "long").err


def test_hints_can_be_pasted(demo_tree: Path, tmp_path: Path, call: Run) -> None:
    """A root whose name a shell would split stands in quotes."""
    root = shutil.copytree(demo_tree, tmp_path / "my runs")
    hint = call("list", "--root", root, "--after", "9999").err.split("hint: `ckpt ")[1].split("`")[0]
    assert call(*shlex.split(hint)).code == 0
    (root / "base_checkpoints/d4/notes.pt").touch()
    assert f"'{root}/base_checkpoints/d4/notes.pt'" in call("list", root / "base_checkpoints/d4/notes.pt").err


def test_how_messages_count() -> None:
    assert [counted(number, "byte") for number in (0, 1, 2)] == ["0 bytes", "1 byte", "2 bytes"]
    assert [counted(1000, "layer", ","), counted(1.0, "second", "g"), counted(0.5, "second", "g")] == [
        "1,000 layers", "1 second", "0.5 seconds"
    ]  # fmt: skip


@pytest.mark.parametrize("group", [(), ("inspect",)])
def test_summaries_are_whole(group: tuple[str, ...], call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command's line is cut off in a terminal of the usual width."""
    monkeypatch.setenv("COLUMNS", "80")
    listed = call(*group, "--help").out.split("\nCommands:\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) >= 4 and all(line.endswith((".", "?")) and "..." not in line for line in listed)


def test_help_everywhere(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every help has examples and the exit codes, and fits a tall window, also one of the usual width; the bare groups
    print help and exit 2.
    """
    monkeypatch.setenv("COLUMNS", "100")
    inner = [["inspect", name] for name in ("meta", "tensors", "optim", "diff")]
    for words in ([], *inner, *([name] for name in COMMANDS)):
        for option in ("-h", "--help"):
            done = call(*words, option)
            assert done.code == 0 and done.err == "" and "examples:" in done.out
            assert len(done.out.splitlines()) <= 60
            for code, meaning in EXIT_CODES.items():
                assert re.search(rf"^ +{code} +{re.escape(meaning)}$", done.out, re.MULTILINE)
        with monkeypatch.context() as narrow:
            narrow.setenv("COLUMNS", "80")
            assert max(map(len, call(*words, "--help").out.splitlines())) <= 80, words
    for words in ([], ["inspect"]):
        done = call(*words)
        assert (done.code, done.out) == (2, "") and "Commands:" in done.err


def test_a_metric_that_none_has_is_said(demo_tree: Path, call: Run) -> None:
    for metric in ("mmlu:max", "val_los"):
        done = call("list", demo_tree, "--metric", metric)
        assert done.code == 0 and done.err == f"note: none of them has the metric {metric.split(':')[0]}\n"
    assert call("list", demo_tree, "--metric", "val_loss").err == ""


def test_the_hint_is_the_help_of_the_command(call: Run) -> None:
    """Also where the option parser does not say which it was."""
    assert "`ckpt prune --help`" in call("prune", "--keep").err
    done = call("list", "a", "b")
    assert done.code == 2 and "more is named than it takes: (b)" in done.err and "`ckpt list --help`" in done.err


def test_a_name_that_begins_with_a_dash(call: Run) -> None:
    done = call("list", "-x")
    assert done.code == 2 and "-- goes before a TARGET that begins with -" in done.err


def test_latest(demo_tree: Path, call: Run) -> None:
    done = call("latest", demo_tree)
    assert done.out == os.path.realpath(demo_tree / "base_checkpoints/d6/model_000150.pt") + "\n"
    assert done.err == "note: took base/d6/150 (the largest depth)\n"
    root = ("--root", demo_tree)
    fields = {
        name: call("latest", "d6", *root, "--field", name).out.strip() for name in ("ref", "source", "tag", "step")
    }
    assert fields == {"ref": "base/d6/150", "source": "base", "tag": "d6", "step": "150"}
    assert call("latest", "d6", *root, "--field", "dir").out.strip() == os.path.realpath(
        demo_tree / "base_checkpoints/d6"
    )
    assert call("latest", "d6", *root, "-q", "--before", 150).out == "base/d6/50\n"
    assert call("latest", "d6", *root, "-q", "--before", 150, "--any-state").out == "base/d6/100\n"
    assert call("latest", "base/d4", *root, "-q", "--best").out == "base/d4/150\n"
    assert call("latest", "base/d4", *root, "-q", "--best", "--metric", "val_bpb:max").out == "base/d4/50\n"
    assert call("latest", "sft/d4", *root, "-q").out == "sft/d4/40\n"
    assert call("latest", "sft/d4", *root, "--resumable").code == 1
    assert call("latest", "d6", *root, "--before", 50).code == 1
    ambiguous = call("latest", "d4", *root)
    assert ambiguous.code == 2 and "base/d4, mid/d4, sft/d4" in ambiguous.err
    assert call("latest", "d6", *root, "--json").json["checkpoint"]["ref"] == "base/d6/150"


def test_inspect_meta(demo_tree: Path, call: Run) -> None:
    meta = json.loads((demo_tree / "mid_checkpoints/d4/meta_000060.json").read_text())
    body = call("inspect", "meta", "mid/d4", "--root", demo_tree, "--json").json
    assert body["command"] == "inspect meta" and body["meta"] == meta and body["checkpoint"]["ref"] == "mid/d4/60"
    key = ("inspect", "meta", "base/d4", "--root", demo_tree, "--key")
    assert call(*key, "model_config.window_pattern").out == "SSSL\n"
    assert call(*key, "model_config.n_layer").out == "4\n"
    assert "n_layer\t4\n" in call(*key, "model_config").out
    assert json.loads(call("inspect", "meta", "mid/d4", "--root", demo_tree, "--format", "table").out) == meta
    missing = call(*key, "model_config.depth")
    assert missing.code == 2 and "n_layer" in missing.err
    assert call(*key, "model_config", "--json").json["meta"]["n_embd"] == 40


def test_not_finite_is_null(tree: Path, call: Run) -> None:
    """nanochat writes bare Infinity where nothing was evaluated."""
    path = tree / "base_checkpoints/d4/meta_000150.json"
    path.write_text('{"val_bpb": NaN, "loop_state": {"min_val_bpb": Infinity}, "list": [1e999]}')
    body = call("inspect", "meta", path, "--json").json
    assert body["meta"] == {"val_bpb": None, "loop_state": {"min_val_bpb": None}, "list": [None]}
    assert call("list", path, "--json").json["checkpoints"][0]["metric"] is None


def test_meta_of_a_file_without_one(tmp_path: Path, call: Run) -> None:
    """What the file itself holds: a plain .pt, which is a checkpoint of its own."""
    torch.save({"step": 7, "config": {"n_layer": 2, "lr": 0.1}, "model": {"w": torch.ones(2)}}, tmp_path / "state.pt")
    body = call("inspect", "meta", tmp_path / "state.pt", "--json").json
    assert body["checkpoint"]["layout"] == "loose" and body["meta"] == {"step": 7, "config": {"n_layer": 2, "lr": 0.1}}


def test_inspect_tensors(demo_tree: Path, call: Run) -> None:
    path = demo_tree / "base_checkpoints/d4/model_000150.pt"
    state = torch.load(path, weights_only=True)
    body = call("inspect", "tensors", "base/d4", "--root", demo_tree, "--hash", "--json").json
    assert list(body)[2:] == ["tensors", "totals", "files", "foreign_globals", "values"]
    shown = {t["name"]: t for t in body["tensors"]}
    assert list(shown) == list(state)
    raw = path.read_bytes()
    for name, tensor in state.items():
        record = shown[name]
        assert record["dtype"] == str(tensor.dtype).removeprefix("torch.") and record["shape"] == list(tensor.shape)
        assert record["stride"] == list(tensor.stride()) and record["bytes"] == tensor.nbytes
        assert record["sha256"] == digest(tensor)
        assert (
            hashlib.sha256(raw[record["offset"] : record["offset"] + record["bytes"]]).hexdigest() == record["sha256"]
        )
    assert body["totals"] == {
        "tensors": len(state),
        "parameters": sum(t.numel() for t in state.values()),
        "bytes": sum(t.nbytes for t in state.values()),
    }
    assert (
        body["files"] == [{"path": os.path.realpath(path), "container": "torch-zip"}] and body["foreign_globals"] == []
    )


def test_inspect_tensors_options(demo_tree: Path, call: Run) -> None:
    base = ("inspect", "tensors", "base/d4", "--root", demo_tree)
    names = call(*base, "-q").out.split()
    assert call(*base, "-q", "--filter", "*.h.0.attn.*").out.split() == [n for n in names if ".h.0.attn." in n]
    assert call(*base, "-q", "--sort", "name").out.split() == sorted(names)
    sizes = [int(line.split("\t")[3]) for line in call(*base, "--sort", "bytes").out.splitlines()]
    assert sizes == sorted(sizes, reverse=True)
    optimizer = call(*base, "--part", "optimizer", "--json").json
    assert [os.path.basename(f["path"]) for f in optimizer["files"]] == [
        "optim_000150_rank0.pt",
        "optim_000150_rank1.pt",
    ]
    assert {f"optim_000150_rank{rank}.pt:0.param_groups.0.lr" for rank in (0, 1)} <= set(optimizer["values"])
    assert call(*base, "--filter", "nothing*").code == 1
    one = call(*base, "--part", "optim_000150_rank1.pt", "--json").json
    named = call("inspect", "tensors", demo_tree / "base_checkpoints/d4/optim_000150_rank1.pt", "--json").json
    assert one["tensors"] == named["tensors"] and len(one["files"]) == 1
    assert call(*base, "--part", "nothing").code == 2


def test_damage_is_one_and_hostile_is_two(demo_tree: Path, tmp_path: Path, call: Run) -> None:
    damaged = call("inspect", "tensors", "base/d4/50", "--root", demo_tree, "--hash", "--json")
    assert damaged.code == 1 and damaged.json["tensors"] == []
    assert damaged.json["problems"][0]["code"] == "crc-mismatch" and "CRC32" in damaged.err
    whole = (demo_tree / "base_checkpoints/d4/model_000150.pt").read_bytes()
    for size in (0, 3, 1000, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        assert call("inspect", "tensors", tmp_path / "cut.pt").code == 1
        assert call("convert", tmp_path / "cut.pt").code == 1
    for content in (b"hello", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"\x1f\x8b\x08rest"):
        (tmp_path / "other.pt").write_bytes(content)
        done = call("inspect", "tensors", tmp_path / "other.pt")
        assert (done.code, done.out) == (2, "")

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    torch.save({"w": Hostile()}, tmp_path / "hostile.pt")
    for command in (["inspect", "tensors"], ["inspect", "meta"], ["convert"]):
        done = call(*command, tmp_path / "hostile.pt", "--json")
        assert (done.code, done.out) == (2, "") and "system" in done.err
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == []


def test_foreign_globals_are_named(tmp_path: Path, call: Run) -> None:
    """An argparse namespace is common: shown, never imported."""
    import argparse

    torch.save({"args": argparse.Namespace(lr=0.1), "w": torch.ones(2)}, tmp_path / "run.pt")
    body = call("inspect", "tensors", tmp_path / "run.pt", "--json").json
    assert body["foreign_globals"] == [{"name": "argparse.Namespace", "runs_code": False}]
    assert body["values"]["args.lr"] == 0.1


def test_prune_refuses_without_a_terminal(tree: Path, call: Run) -> None:
    before = sorted(tree.rglob("*"))
    for extra in ([], ["--json"]):
        done = call("prune", tree, "--keep", 1, *extra)
        assert done.code == 4 and "no terminal" in done.err
        assert not extra or done.out == ""
    assert sorted(tree.rglob("*")) == before


def test_prune_asks_and_defaults_to_no(tree: Path) -> None:
    """On a real terminal: the question names count and bytes, Enter declines, y goes ahead."""
    for answer, code, left in (("\n", 1, 3), ("y\n", 0, 1)):
        master, slave = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "ckpt_cli", "prune", "base/d4", "--root", str(tree), "--keep", "1"],
            stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        os.write(master, answer.encode())
        _, err = child.communicate(timeout=60)
        os.close(slave)
        os.close(master)
        assert child.returncode == code
        assert re.search(r"remove 2 checkpoints \(1\.90 MB\) of 1 run\? \[y/N\]", err)
        assert len(list((tree / "base_checkpoints/d4").glob("model_*.pt"))) == left


def on_a_terminal(*arguments: object, width: int = 120, **environ: str) -> str:
    """What `ckpt` writes to one of so many columns."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "ckpt_cli", *map(str, arguments)],
        stdout=slave, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": "/nonexistent",
             "COLUMNS": str(width), "TERM": "xterm-256color", **environ},
    )  # fmt: skip
    os.close(slave)
    text = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        text += piece
    os.close(master)
    assert child.wait(timeout=60) == 0
    return text.decode()


def uncoloured(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_table_on_a_terminal_obeys_no_color_and_width(demo_tree: Path) -> None:
    wide = on_a_terminal("list", demo_tree)
    assert "\x1b[" in wide and all(f"base/d6/{step} " in wide for step in (50, 100, 150))
    assert "\x1b[3" not in on_a_terminal("list", demo_tree, NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal("list", demo_tree, TERM="dumb")
    narrow = on_a_terminal("list", demo_tree, width=70)
    assert "base/d6/100 " in narrow and "incomplete" in narrow
    assert max(len(line) for line in uncoloured(narrow).splitlines()) <= 70


def test_a_long_table_on_a_terminal(call: Run, tmp_path: Path) -> None:
    """The same rows as in a pipe, with the colours of a short one, and not in minutes."""
    for step in range(1000):
        (tmp_path / f"checkpoint_{step:06}.bin").write_bytes(b"" if step % 2 else b"\1")
    piped = call("list", tmp_path, "--format", "table").out
    long = on_a_terminal("list", tmp_path)
    assert len(piped.splitlines()) == 1001
    states = ("damaged", "incomplete", "unreadable", "complete")
    assert [line.split() for line in uncoloured(long).splitlines()] == [line.split() for line in piped.splitlines()]
    headings, *rows = long.splitlines()
    assert headings.startswith("\x1b[1m") and any(f"m{state}" in row for row in rows for state in states)
    assert "\x1b[" not in on_a_terminal("list", tmp_path, TERM="dumb")


@pytest.mark.parametrize("options", ["--json", "--format plain", "-q"])
def test_closed_pipe_is_silent(demo_tree: Path, options: str) -> None:
    """Also when the reader is gone before the first byte, and when the pipe cannot hold all of it."""
    many = f'"{sys.executable}" -m ckpt_cli inspect tensors "{demo_tree}" --part optimizer {options}'
    for reader in ("true", "head -c 10"):
        done = subprocess.run(
            ["bash", "-c", f"(sleep 0.2; {many}; echo $? >&2) | {reader} >/dev/null"],
            capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == ["0"]


def test_interrupt_is_130(demo_tree: Path, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import ckpt_cli.commands.list as command

    def interrupt(query: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "choose", interrupt)
    done = call("list", demo_tree, "--json")
    assert (done.code, done.out, done.err) == (130, "", "error: interrupted\n")


def test_version_and_module(ckpt: Run) -> None:
    done = ckpt("--version")
    assert done.code == 0 and re.match(r"ckpt \d+\.\d+\.\d+, Python 3\.", done.out)


def test_internal_error_is_a_sentence(demo_tree: Path, call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours is no traceback either; CKPT_DEBUG=1 shows it."""
    import ckpt_cli.commands.list as command

    monkeypatch.setattr(command, "choose", lambda query: 1 / 0)
    done = call("list", demo_tree)
    assert (done.code, done.out) == (2, "") and "ZeroDivisionError" in done.err and "CKPT_DEBUG=1" in done.err
    monkeypatch.setenv("CKPT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        call("list", demo_tree)


def test_demo_refuses_a_full_directory(tmp_path: Path, call: Run) -> None:
    (tmp_path / "file").write_text("mine")
    done = call("demo", tmp_path)
    assert done.code == 4 and sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["file"]
    assert call("demo", tmp_path / "new", "-q").code == 2


def test_demo_is_what_it_says(demo_tree: Path) -> None:
    """Loads with weights only; the loss falls; the damaged file loads in silence, and a zip reader finds it."""
    import zipfile

    metas = [json.loads((demo_tree / f"base_checkpoints/d4/meta_{s:06d}.json").read_text()) for s in (50, 100, 150)]
    losses = [meta["val_bpb"] for meta in metas]
    assert losses == sorted(losses, reverse=True) and [meta["step"] for meta in metas] == [50, 100, 150]
    bad = []
    for path in demo_tree.rglob("*.pt"):
        torch.load(path, weights_only=True)
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                bad.append(path.name)
    assert bad == ["model_000050.pt"]
    assert (
        "window_pattern"
        not in json.loads((demo_tree / "mid_checkpoints/d4/meta_000060.json").read_text())["model_config"]
    )


def test_hashes_of_every_real_nanochat_file(shared: Path, call: Run) -> None:
    """Shapes, dtypes and digests as torch gives them."""
    for path in sorted((shared / "real/nanochat").rglob("*.pt")):
        if path.name.startswith("expected"):
            continue
        state = torch.load(path, weights_only=True, map_location="cpu")
        expected: dict[str, tuple[list[int], str, str]] = {}

        def walk(value: Any, name: str, into: dict[str, tuple[list[int], str, str]] = expected) -> None:
            if isinstance(value, torch.Tensor):
                into[name] = (list(value.shape), str(value.dtype).removeprefix("torch."), digest(value))
            elif isinstance(value, (dict, list)):
                for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                    walk(item, f"{name}.{key}" if name else str(key))

        walk(state, "")
        body = call("inspect", "tensors", path, "--hash", "--json").json
        assert {t["name"]: (t["shape"], t["dtype"], t["sha256"]) for t in body["tensors"]} == expected
