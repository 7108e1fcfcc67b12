"""Settings files: which counts, what they may say, and that a mistake is one sentence with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_cli.discover import SOURCES
from ckpt_cli.errors import CkptError
from ckpt_cli.settings import Settings, duration, load
from tests.conftest import Run


def test_nothing_settled(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.other]\nckptx = 1\n[project]\nname = "x"\n')
    assert load(str(tmp_path), str(tmp_path / "none")) == Settings()
    assert load(str(tmp_path), None) == Settings()


def test_the_nearest_file_counts_before_the_user_s(tmp_path: Path) -> None:
    """Key by key; a directory's own ckpt.toml before its pyproject.toml, both before what lies further up."""
    user, project, inner = tmp_path / "user", tmp_path / "project", tmp_path / "project/a/b"
    for folder in (user, inner):
        folder.mkdir(parents=True)
    (user / "ckpt.toml").write_text('metric = "acc:max"\ngrace = "1h"\n')
    (project / "ckpt.toml").write_text('root = "runs"\n')
    (project / "pyproject.toml").write_text('[tool.ckpt]\nroot = "never"\n')
    assert load(str(inner), str(user)) == Settings(
        root=str(project / "runs"),
        metric="acc:max",
        grace=3600.0,
        origins={
            "metric": str(user / "ckpt.toml"),
            "grace": str(user / "ckpt.toml"),
            "root": str(project / "ckpt.toml"),
        },
    )
    (project / "a/pyproject.toml").write_text('[tool.ckpt]\nroot = "/srv/x"\nmetric = "val_loss"\n')
    settings = load(str(inner), str(user))
    assert (settings.root, settings.metric, settings.grace) == ("/srv/x", "val_loss", 3600.0)
    (inner / "pyproject.toml").write_text("not TOML at all, and nobody asks\n")
    assert load(str(inner), str(user)) == settings


def test_sources_are_added_and_changed(tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_text('[sources]\nbase = ["mine", "yours"]\nabl = "ablations"\n')
    sources = load(str(tmp_path), None).sources
    assert sources == {
        "mine": "base",
        "yours": "base",
        **{name: source for name, source in SOURCES.items() if source != "base"},
        "ablations": "abl",
    }
    assert next(iter(sources.values())) == "base"
    assert list(sources.values())[-1] == "abl"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("root = \n", 1, "invalid value"),
        ('metric = "x:min"\nroot = "a\n', 2, "illegal|invalid|expected|unterminated"),
        ("\n\ncolour = 3\n", 3, "there is no setting 'colour'"),
        ("root = 3\n", 1, "root is a path"),
        ('root = "a"\ngrace = "soon"\n', 2, "grace is a duration"),
        ("grace = true\n", 1, "grace is a duration"),
        ("grace = nan\n", 1, "grace is a duration"),
        ('metric = "quality"\n', 1, "metric is NAME"),
        ("metric = 7\n", 1, "metric is NAME"),
        ('sources = "base"\n', 1, "sources is a table"),
        ('[sources]\nmid = "x"\nbase = "a/b"\n', 3, "more than one name"),
        ("[sources]\nbase = 3\n", 2, "source 'base' is a directory"),
        ("[policies]\nweekly = 3\n", 1, "policies holds a table"),
        ("[policies.weekly]\nkeep = 3\nyes = true\n", 3, "there is no rule 'yes'"),
        ("yes = true\n", 1, "there is no setting 'yes'"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, what: str, tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_text(text)
    with pytest.raises(CkptError, match=what) as raised:
        load(str(tmp_path), None)
    assert f"{tmp_path / 'ckpt.toml'}, line {line}: " in raised.value.message
    assert "\n" not in raised.value.message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_bytes(b'root = "a"\nmetric = "\xff"\n')
    with pytest.raises(CkptError, match="line 2: it is not UTF-8"):
        load(str(tmp_path), None)


def test_durations() -> None:
    assert [duration(text) for text in ("90", "30s", "10m", "1.5h", "7d", "2w")] == [90, 30, 600, 5400, 604800, 1209600]
    assert [duration(text) for text in ("", "m", "1y", "-3m", "1 2")] == [None] * 5


def test_every_command_obeys(ckpt: Run, demo_tree: Path, tmp_path: Path) -> None:
    """The root from a file, a source under another directory's name, the metric of `best`; flags are stronger."""
    (tmp_path / "ckpt.toml").write_text(
        f'root = "{demo_tree}"\nmetric = "val_bpb:max"\n[sources]\nold = "mid_checkpoints"\n'
    )
    listed = ckpt("list", "-q", cwd=tmp_path)
    assert "old/d4/60" in listed.out.split()
    assert ckpt("latest", "base/d4", "--best", "--field", "step", cwd=tmp_path).out == "50\n"
    assert ckpt("latest", "base/d4/best", "--field", "step", cwd=tmp_path).out == "50\n"
    assert ckpt("latest", "base/d4", "--metric", "val_bpb", "--field", "step", cwd=tmp_path).out == "150\n"
    other = tmp_path / "other"
    other.mkdir()
    assert ckpt("list", "--root", other, cwd=tmp_path).code == 1
    assert ckpt("list", cwd=tmp_path, env={"CKPT_ROOT": str(other)}).code == 1
    assert f"({tmp_path / 'ckpt.toml'})" in ckpt("prune", "--keep", "9", "-n", cwd=tmp_path).err
    (tmp_path / "ckpt.toml").write_text("root = \n")
    broken = ckpt("list", cwd=tmp_path)
    assert (broken.code, broken.out) == (2, "")
    assert broken.err.startswith(f"error: {tmp_path / 'ckpt.toml'}, line 1: invalid value")


def test_the_user_s_file(ckpt: Run, demo_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt/ckpt.toml").write_text(f'root = "{demo_tree}"\n')
    assert "base/d4/50" in ckpt("list", "-q", env={"XDG_CONFIG_HOME": str(tmp_path)}).out


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("pyproject.toml", '[tool.other]\nbad = 1\n[tool.ckpt]\nroot = "x"\nbad = 1\n', 5),
        ("pyproject.toml", "[tool.other]\ngrace = 1\n[tool.ckpt.sources]\ngrace = 'x'\n[tool.ckpt]\ngrace = '1x'\n", 6),
        ("pyproject.toml", "[project]\nroot = 1\n[tool]\nckpt.root = 1\n", 4),
        ("ckpt.toml", '[policies.a]\nmetric = "x"\n[policies.b]\nkeep = 1\nbad = 2\n[sources]\nbad = 3\n', 5),
        ("ckpt.toml", 'metric = "val_bpb"\nsources = {a = "x", metric = 3}\n', 2),
        ("ckpt.toml", "policies.a.keep = 1\npolicies.a.bad = 1\n", 2),
    ],
)
def test_the_line_is_that_of_the_right_table(tmp_path: Path, name: str, text: str, line: int) -> None:
    """The same key may stand in other tables."""
    (tmp_path / name).write_text(text)
    with pytest.raises(CkptError) as raised:
        load(str(tmp_path), None)
    assert f"{tmp_path / name}, line {line}: " in raised.value.message
