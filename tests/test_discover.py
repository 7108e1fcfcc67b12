"""What lies in a tree: every era of nanochat, odd names, links, unreadable directories."""

from __future__ import annotations

import json
import os
import tarfile
import time
from pathlib import Path

import pytest

from ckpt_cli.checkpoint import Checkpoint, checkpoint_record
from ckpt_cli.discover import Discovery, discover, natural, place
from ckpt_cli.errors import CkptError
from ckpt_cli.layouts import Folder, nanochat
from ckpt_cli.small_files import read_json
from tests.conftest import Run

OLD = 1_700_000_000


def write(root: Path, *names: str, content: str = "{}", when: int = OLD) -> None:
    """Small files with an old mtime, so that nothing counts as in progress."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (when, when))


def found(root: Path) -> dict[str, Checkpoint]:
    return {checkpoint.ref: checkpoint for checkpoint in discover(str(root)).checkpoints}


def step(directory: str, number: str, *ranks: int) -> list[str]:
    names = [f"{directory}/model_{number}.pt", f"{directory}/meta_{number}.json"]
    return names + [f"{directory}/optim_{number}_rank{rank}.pt" for rank in ranks]


def test_sources_and_tags(tmp_path: Path) -> None:
    """Four source directories, the one-day one, an experiment, a run in no source directory."""
    for directory in (
        "base_checkpoints/d12",
        "mid_checkpoints/d12",
        "chatsft_checkpoints/d12",
        "sft_checkpoints/d20",
        "chatrl_checkpoints/d12",
        "experiments/default/d8/base",
        "experiments/default/d8/sft",
        "mine/a/b",
    ):
        write(tmp_path, *step(directory, "000100"))
    assert sorted(found(tmp_path)) == [
        "base/d12/100",
        "base/experiments/default/d8/100",
        "mid/d12/100",
        "mine/a/b/100",
        "rl/d12/100",
        "sft/d12/100",
        "sft/d20/100",
        "sft/experiments/default/d8/100",
    ]


@pytest.mark.parametrize(
    ("below", "ref"),
    [
        ("", "base/d12/100"),
        ("base_checkpoints", "base/d12/100"),
        ("base_checkpoints/d12", "base/d12/100"),
    ],
)
def test_any_directory_can_be_the_root(tmp_path: Path, below: str, ref: str) -> None:
    """A base directory, a source directory and a run name a checkpoint alike."""
    write(tmp_path, *step("base_checkpoints/d12", "000100"))
    assert list(found(tmp_path / below)) == [ref]


def test_place_of_an_experiment() -> None:
    assert place("/x/experiments/one/d8/base", "/x") == ("base", "experiments/one/d8")
    assert place("/x/experiments/one/d8/base", "/x/experiments/one/d8/base") == ("base", "d8")
    assert place("/x/runs/base", "/x/runs") == (None, "base")


def test_two_directories_of_one_source_stay_apart(tmp_path: Path) -> None:
    """`chatsft_checkpoints/d20` and `sft_checkpoints/d20` are both sft/d20."""
    write(tmp_path, *step("chatsft_checkpoints/d20", "000100"), *step("sft_checkpoints/d20", "000100"))
    assert sorted(found(tmp_path)) == ["sft/d20/100", "sft/sft_checkpoints/d20/100"]


def test_steps_are_numbers_of_any_width(tmp_path: Path) -> None:
    """model_1000000 comes after model_999999; other widths need their meta, as no trainer writes them alone."""
    write(tmp_path, *step("d12", "999999"), *step("d12", "1000000"), *step("d12", "42"), "d12/model_00010.pt")
    found = discover(str(tmp_path)).checkpoints
    assert [c.step for c in found if c.layout == "nanochat"] == [42, 999999, 1000000]


def test_one_number_twice_takes_the_trainers_name(tmp_path: Path) -> None:
    write(tmp_path, *step("d12", "000042"), *step("d12", "42"))
    assert sorted(found(tmp_path)) == ["d12/model_000042", "d12/model_42"]


def test_ranks_and_resumability(tmp_path: Path) -> None:
    """Expected are the ranks up to the largest at any step; without optimizer a step is whole, not resumable."""
    write(tmp_path, *step("d12", "000100", 0, 1, 2), *step("d12", "000200", 0, 2), *step("d12", "000300"))
    whole, lacking, bare = found(tmp_path).values()
    assert (whole.state, whole.resumable) == ("complete", True)
    assert lacking.state == "incomplete" and lacking.resumable is False
    assert lacking.ranks is not None and lacking.ranks == ((0, 2), (1,))
    assert [(p.code, os.path.basename(p.path)) for p in lacking.problems] == [("missing-part", "optim_000200_rank1.pt")]
    assert (bare.state, bare.resumable, bare.ranks) == ("complete", False, None)


def test_optimizer_without_rank(tmp_path: Path) -> None:
    """Until November 2025 one file held it, and has no rank; later ranks of the run say nothing about it."""
    write(tmp_path, *step("d12", "000100"), "d12/optim_000100.pt", *step("d12", "000200", 0, 1))
    first = found(tmp_path)["d12/100"]
    assert (first.state, first.resumable, first.ranks) == ("complete", True, None)
    assert [part["rank"] for part in checkpoint_record(first)["parts"]] == [None, None, None]


def test_absurd_rank_is_no_shard(tmp_path: Path) -> None:
    """A rank of eleven digits must not make a list of that length."""
    write(tmp_path, *step("d12", "000100", 0), "d12/optim_000100_rank99999999999.pt", "d12/optim_000100_rank01.pt")
    assert found(tmp_path)["d12/100"].ranks == ((0,), ())


def test_missing_and_unreadable_parts(tmp_path: Path) -> None:
    """Model without meta, meta without model, optimizer alone, a meta that is not JSON or no object, an empty model."""
    write(tmp_path, "d/model_000100.pt", "d/meta_000200.json", "d/optim_000300_rank0.pt")
    write(tmp_path, *step("d", "000400", 0), *step("d", "000500", 0), *step("d", "000600", 0), *step("d", "000700", 0))
    write(tmp_path, "d/meta_000400.json", content='{"step": 4')
    write(tmp_path, "d/meta_000500.json", content="[1]")
    write(tmp_path, "d/model_000600.pt", content="")
    write(tmp_path, "d/meta_000700.json", content='{"val_bpb": Infinity, "loss": 0.5}')
    problems = {c.step: [p.code for p in c.problems] for c in discover(str(tmp_path)).checkpoints}
    assert problems == {
        100: ["missing-part"],
        200: ["missing-part"],
        300: ["missing-part", "missing-part"],
        400: ["bad-meta"],
        500: ["bad-meta"],
        600: ["empty-file"],
        700: [],
    }
    states = {c.step: c.state for c in discover(str(tmp_path)).checkpoints}
    assert states == {100: "incomplete", 200: "incomplete", 300: "incomplete", 400: "incomplete",
                      500: "incomplete", 600: "incomplete", 700: "complete"}  # fmt: skip
    assert checkpoint_record(found(tmp_path)["d/700"])["metric"] == {"name": "loss", "value": 0.5, "goal": "min"}


def test_in_progress_within_the_grace_time(tmp_path: Path) -> None:
    now = time.time()
    write(tmp_path, "d/model_000100.pt", when=int(now) - 60)
    write(tmp_path, "d/model_000200.pt", when=int(now) - 6000)
    write(tmp_path, "d/model_000300.pt", when=int(now) + 6000)
    assert [c.state for c in discover(str(tmp_path)).checkpoints] == ["in-progress", "incomplete", "in-progress"]
    later = discover(str(tmp_path), now=int((now + 10**6) * 1e9))
    assert {c.state for c in later.checkpoints} == {"incomplete"}


def test_foreign_files_are_not_claimed(tmp_path: Path) -> None:
    write(
        tmp_path,
        *step("d12", "000100"),
        "d12/old_model_000100.pt",
        "d12/model_000200_backup.pt",
        "d12/model_000300.pt.old",
        "d12/.model_000300.pt.tmp",
        "d12/notes.tmp",
        "d12/model_-00100.pt",
        "d12/MODEL_000900.PT",
        "d12/model_١٢٣٤٥٦.pt",
        "d12/model_000400.pt\n",
        "d12/model_000500_rank0.pt",
        "d12/expected_logits_000100.pt",
        "d12/model_000600.safetensors",
    )
    (only,) = found(tmp_path).values()
    assert only.step == 100 and len(only.parts) == 2


def test_what_goes_along_with_a_checkpoint(tmp_path: Path) -> None:
    """An export, a manifest and a pin belong to the step and count for nothing."""
    write(tmp_path, *step("d12", "000100"))
    before = found(tmp_path)["d12/100"]
    ours = ("d12/model_000100.safetensors", "d12/model_000100.pt.sha256", "d12/model_000100.keep")
    write(tmp_path, *ours, when=OLD + 99)
    after = found(tmp_path)["d12/100"]
    assert [part.role for part in after.parts] == ["model", "meta", "manifest", "export", "other"]
    assert after.modified == before.modified and after.pinned and not before.pinned
    assert after.bytes == before.bytes + 4  # the manifest and the pin, not the export


def test_skipped_directories(tmp_path: Path) -> None:
    for name in ("base_data", "base_data_climbmix", "eval_bundle", "report", "tokenizer", ".hidden", "a/b/c/d/e/f"):
        write(tmp_path, *step(name, "000100"))
    assert found(tmp_path) == {}
    write(tmp_path, *step("a/b/c/d/e", "000100"))
    assert list(found(tmp_path)) == ["a/b/c/d/e/100"]


def test_links(tmp_path: Path) -> None:
    """A loop, to the root or to what it lies in, is not followed, a link within the root is not met twice, a run linked
    from outside is marked."""
    root = tmp_path / "root"
    write(root, *step("d12", "000100"))
    write(tmp_path, *step("elsewhere", "000100"))
    (root / "loop").symlink_to(root)
    (root / "up").symlink_to("..")
    (root / "again").symlink_to(root / "d12")
    (root / "d20").symlink_to(tmp_path / "elsewhere")
    (root / "d12" / "model_000200.pt").symlink_to("model_000200.pt")
    (root / "d12" / "model_000300.pt").symlink_to("../gone.pt")
    there = found(root)
    assert {ref: c.linked for ref, c in there.items()} == {
        "d12/100": False,
        "d12/200": False,
        "d12/300": False,
        "d20/100": True,
    }
    assert {p.code for p in there["d12/200"].problems} == {"unreadable-part", "missing-part"}


def test_a_link_to_a_hidden_place_in_the_root_is_followed(tmp_path: Path) -> None:
    """Nothing else leads there; prune leaves it alone, as it does every linked run."""
    write(tmp_path, *step(".store/d4", "000100"))
    (tmp_path / "base_checkpoints").mkdir()
    (tmp_path / "base_checkpoints/d4").symlink_to("../.store/d4")
    assert {ref: c.linked for ref, c in found(tmp_path).items()} == {"base/d4/100": True}


def test_unreadable_directory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errno is injected, for root may read everything."""
    write(tmp_path, *step("d12", "000100"), *step("d20", "000100"))
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("d20"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = discover(str(tmp_path))
    assert [c.ref for c in result.checkpoints] == ["d12/100"]
    assert len(result.warnings) == 1 and "Permission denied" in result.warnings[0]


UNREADABLE = {
    "nanochat": ([*step("d12", "000100")], "d12/meta_000100.json"),
    "trainer": (
        ["out/checkpoint-5/config.json", "out/checkpoint-5/model.safetensors", "out/checkpoint-5/trainer_state.json"],
        "out/checkpoint-5/trainer_state.json",
    ),
    "shards": (
        ["hub/config.json", "hub/model-00001-of-00001.safetensors", "hub/model.safetensors.index.json"],
        "hub/model.safetensors.index.json",
    ),
    "components": (
        ["pipe/model_index.json", "pipe/unet/config.json", "pipe/unet/model.safetensors"],
        "pipe/model_index.json",
    ),
    "torchtune": (
        ["out/epoch_0/ft-model-00001-of-00001.safetensors", "out/epoch_0/model.safetensors.index.json"],
        "out/epoch_0/model.safetensors.index.json",
    ),
    "distributed": (["run/step-5/.metadata", "run/step-5/__0_0.distcp"], "run/step-5/.metadata"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "closed"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_may_not_be_read_is_not_called_garbled(
    names: list[str], closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole, so that `prune --incomplete` leaves it; the errno is injected, for root may read everything."""
    write(tmp_path, *names)
    (garbled,) = discover(str(tmp_path)).checkpoints
    real = os.open

    def opened(path: str, flags: int, *more: int, **named: int) -> int:
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    (only,) = discover(str(tmp_path)).checkpoints
    said = [(problem.code, problem.path) for problem in only.problems if problem.path.endswith(closed)]
    assert said == [("unreadable-part", str(tmp_path / closed))] and only.state == "incomplete"
    assert (closed, "unreadable-part") not in [(problem.path, problem.code) for problem in garbled.problems]


def test_file_that_vanishes_while_scanning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer may rotate files between readdir and stat."""
    write(tmp_path, *step("d12", "000100"))
    real = nanochat.scan

    def scan(folder: Folder) -> object:
        if folder.tag == "d12":
            os.unlink(tmp_path / "d12" / "model_000100.pt")
        return real(folder)

    monkeypatch.setattr(nanochat, "scan", scan)
    (only,) = discover(str(tmp_path)).checkpoints
    assert only.state == "incomplete" and only.problems[0].code == "unreadable-part"


def test_one_readdir_per_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write(tmp_path, *step(f"base_checkpoints/d{number}", "000100", 0))
    read: list[str] = []
    real = os.scandir

    def scandir(path: str) -> object:
        read.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail(f"a second look at {path}"))
    discover(str(tmp_path))
    assert sorted(read) == sorted({str(tmp_path), *(str(p) for p in tmp_path.rglob("*") if p.is_dir())})


def test_natural_order() -> None:
    assert sorted(["d12", "d4", "d4_b", "a", "d"], key=natural) == ["a", "d", "d4", "d4_b", "d12"]


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"{", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b"\x80", b""],
    ids=["utf-16", "torn", "deep", "digits", "bytes", "empty"],
)
def test_bad_json_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta.json"
    path.write_bytes(content)
    with pytest.raises(CkptError) as failure:
        read_json(str(path))
    assert failure.value.message.startswith("meta.json") and "\n" not in failure.value.message


def test_every_real_nanochat_tree(shared: Path) -> None:
    """Names exactly the steps that the file names there give, each complete, with the right optimizer."""
    for root in sorted((shared / "real/nanochat").iterdir()):
        expected = {}
        for model in root.glob("*_checkpoints/*/model_*.pt"):
            source = {"base_checkpoints": "base", "mid_checkpoints": "mid", "chatsft_checkpoints": "sft",
                      "chatrl_checkpoints": "rl"}[model.parent.parent.name]  # fmt: skip
            digits = model.stem.removeprefix("model_")
            names = {p.name for p in model.parent.iterdir() if digits in p.name and not p.name.startswith("expected")}
            expected[f"{source}/{model.parent.name}/{int(digits)}"] = names
        there = found(root)
        assert {ref: {os.path.basename(p.path) for p in c.parts} for ref, c in there.items()} == expected
        assert {c.state for c in there.values()} == {"complete"}
        for checkpoint in there.values():
            assert checkpoint.resumable == (checkpoint.source in ("base", "mid"))
            if checkpoint.source != "rl":
                assert checkpoint_record(checkpoint)["metric"]["name"] in ("val_bpb", "val_loss")


def test_odd_names(shared: Path, tmp_path: Path, ckpt: Run) -> None:
    """Markup, escapes, newlines, bidirectional marks, undecodable bytes: listed harmlessly, and raw in JSON."""
    with tarfile.open(shared / "hostile/names/odd_names.tar", errors="surrogateescape") as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4, which warns without
            archive.extraction_filter = tarfile.fully_trusted_filter
        archive.extractall(tmp_path)
    for format in ("table", "plain", "name"):
        done = ckpt("list", tmp_path, "--format", format)
        assert done.code == 0
        text = done.out + done.err
        assert all(character.isprintable() or character in "\n\t" for character in text)
        assert len(done.out.splitlines()) == len(found(tmp_path)) + (format == "table")
    record = ckpt("list", tmp_path, "--json")
    assert record.out.isascii() and {c["ref"] for c in record.json["checkpoints"]} == set(found(tmp_path))
    assert "[red]d12[/red]/100" in found(tmp_path) and "d12\nd13/100" in found(tmp_path)


def test_empty_root_and_no_root(tmp_path: Path) -> None:
    assert discover(str(tmp_path)) == Discovery(os.path.realpath(tmp_path), (), (), ())
    with pytest.raises(Exception, match="there is no directory"):
        discover(str(tmp_path / "no"))


def test_metrics_of_a_meta(tmp_path: Path) -> None:
    """Numbers at the top that measure, not those that configure; huge integers do not crash."""
    write(tmp_path, *step("d", "000100"))
    meta = {"step": 9, "val_bpb": None, "mmlu_acc": 0.25, "ok": True, "total_batch_size": 5, "huge": 10**400}
    write(tmp_path, "d/meta_000100.json", content=json.dumps(meta))
    assert found(tmp_path)["d/100"].metrics == (("mmlu_acc", 0.25),)


def test_a_link_that_may_not_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc/1/cwd to most: what lies beside it is found all the same."""
    write(tmp_path, *step("d12", "000100"))
    (tmp_path / "d12" / "cwd").symlink_to("/")
    real = os.path.realpath

    def closed(path: str, **how: bool) -> str:
        if str(path).endswith("cwd"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **how)

    monkeypatch.setattr(os.path, "realpath", closed)
    monkeypatch.setattr("ckpt_cli.discover._is_directory", lambda entry: entry.is_dir(follow_symlinks=False))
    assert [checkpoint.step for checkpoint in discover(str(tmp_path)).checkpoints] == [100]


def test_where_links_lead(tmp_path: Path) -> None:
    """To files and folders, through other links, in a loop, to nothing."""
    write(tmp_path, *step("d12", "000100"), "run/checkpoint-1/model.safetensors")
    (tmp_path / "run/best").symlink_to("checkpoint-1/")
    (tmp_path / "d12/best.pt").symlink_to("model_000100.pt")
    (tmp_path / "d12/again.pt").symlink_to("best.pt")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("gone")
    top = os.path.realpath(tmp_path)
    led = set(filter(os.path.lexists, discover(str(tmp_path)).targets))
    there = ("run/checkpoint-1", "d12/model_000100.pt", "d12/best.pt", "loop", "pool")
    assert led == {os.path.join(top, name) for name in there}


def test_two_of_one_name_and_layout(tmp_path: Path) -> None:
    """torchtune's files by the epoch in their names, and a folder that is called as that epoch."""
    write(tmp_path, "run/hf_model_0001_0.pt", "run/epoch_0/ft-model-00001-of-00001.safetensors")
    write(tmp_path, "run/recipe_state/recipe_state.pt")
    assert sorted(found(tmp_path)) == ["run/epoch_0.torchtune", "run/epoch_0.torchtune.2"]
