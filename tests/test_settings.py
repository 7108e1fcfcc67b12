"""Settings files: which counts, what they may say, and that a mistake is one sentence with its line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ckpt_cli.discover import SOURCES
from ckpt_cli.errors import CkptError
from ckpt_cli.ruleset import duration
from ckpt_cli.settings import Settings, load
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
        ("[policies]\nweekly = 3\n", 2, "policy 'weekly' is a table"),
        ("[policies.weekly]\nkeep = 3\nyes = true\n", 3, "there is no rule 'yes'"),
        ("yes = true\n", 1, "there is no setting 'yes'"),
        ('root = ""\n', 1, "root is a path"),
        ('root = ["a"]\n', 1, "root is a path"),
        ('metric = ""\n', 1, "metric is NAME"),
        ('metric = "acc:up"\n', 1, "metric is NAME"),
        ('metric = ":min"\n', 1, "metric is NAME"),
        ('metric = ["val_loss"]\n', 1, "metric is NAME"),
        ("grace = -1\n", 1, "grace is a duration"),
        ("grace = inf\n", 1, "grace is a duration"),
        ('grace = "10 minutes"\n', 1, "grace is a duration"),
        ("grace = 07:32:00\n", 1, "grace is a duration"),
        ("sources = []\n", 1, "sources is a table"),
        ('[sources]\nbase = ["a", 3]\n', 2, "source 'base' is a directory"),
        ('[sources]\nbase = ""\n', 2, "source 'base' is a directory"),
        ('[sources]\n"a/b" = "x"\n', 2, "'a/b' is no name for a source"),
        ('[sources]\n"" = "x"\n', 2, "'' is no name for a source"),
        ('[sources]\n".." = "x"\n', 2, "'..' is no name for a source"),
        ('[sources]\nbase = ".."\n', 2, "more than one name"),
        ('[sources]\nbase = ".hidden"\n', 2, "where checkpoints are never looked for"),
        ('[sources]\na = "x"\nb = ["y", "x"]\n', 3, "'x', which stands for 'a' already"),
        ("policies = 3\n", 1, "policies holds a table"),
        ("[[policies]]\nkeep = 3\n", 1, "policies holds a table"),
        ("[policies]\na.keep = 1\nb = 2\n", 3, "policy 'b' is a table"),
        ('[policies.weekly]\nkeep = "3"\n', 2, "in the policy 'weekly', keep takes a whole number, not '3'"),
        ("[policies.weekly]\nkeep-last = 1.5\n", 2, "keep-last takes a whole number"),
        ("[policies.weekly]\nkeep = -1\n", 2, "keep takes a number from 0"),
        ("[policies.weekly]\nkeep = true\n", 2, "keep takes a whole number"),
        ("[policies.weekly]\nkeep = 3\nkeep-every = 0\n", 3, "keep-every takes a number of steps from 1"),
        ("[policies.weekly]\nkeep-best = 0\n", 2, "keep-best takes a number from 1"),
        ("[policies.weekly]\nkeep-best = [1]\n", 2, "keep-best takes a whole number"),
        ('[policies.weekly]\nkeep-within = "7"\n', 2, "'7' is no duration"),
        ('[policies.weekly]\nkeep-within = ""\n', 2, "'' is no duration"),
        ("[policies.weekly]\nkeep-within = 7\n", 2, "keep-within takes a text in quotes"),
        ("[policies.weekly]\nkeep-within = 2026-01-01\n", 2, "keep-within takes a text in quotes"),
        ('[policies.weekly]\nkeep-step = "100"\n', 2, "keep-step takes a whole number"),
        ("[policies.weekly]\nkeep-step = [100, 1.5]\n", 2, "keep-step takes a whole number"),
        ("[policies.weekly]\nkeep-step = [-1]\n", 2, "keep-step takes a step from 0"),
        ("[policies.weekly]\nkeep-step = []\n", 2, "keep-step names nothing to keep"),
        ('[policies.weekly]\nmax-size = "50"\n', 2, "'50' is no size"),
        ("[policies.weekly]\nmax-size = 50\n", 2, "max-size takes a text in quotes"),
        ('[policies.weekly]\nkeep-best = 1\nmetric = "acc"\n', 3, "metric is NAME"),
        ("[policies.weekly]\nmetric = 1\n", 2, "metric is NAME"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, what: str, tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_text(text)
    with pytest.raises(CkptError, match=what) as raised:
        load(str(tmp_path), None)
    assert f"{tmp_path / 'ckpt.toml'}, line {line}: " in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('root = "a', 1),
        ('metric = "x:min"\nroot = "a', 2),
        ("a = [1,\n2,\n\n\n", 2),
        ("\n[sources\n", 2),
        ("\ngrace = 1\ngrace = 2\n", 3),
        ("[sources]\n[sources]\n", 2),
        ("grace = 1\ngrace.x = 2\n", 2),
        ("\n= 3\n", 2),
        ("\n\ngrace 3\n", 3),
        ('\nroot = "\\q"\n', 2),
        ("\ngrace = 2026-13-01\n", 2),
        ("\ngrace = 007\n", 2),
        ("\ngrace = " + "9" * 5000 + "\n", 2),
        ("\n\nroot = " + "[" * 3000 + "\n", 3),
        ("\nroot = " + "{a=" * 3000 + "\n", 2),
        ("root = 1\n\x00\n", 2),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_text(text)
    with pytest.raises(CkptError) as raised:
        load(str(tmp_path), None)
    assert raised.value.message.startswith(f"{tmp_path / 'ckpt.toml'}, line {line}: ")
    assert len(raised.value.message) < len(str(tmp_path)) + 120
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "text",
    [
        "[policies.a]\n",
        "[policies.a]\nkeep = 0\n",
        '[policies.a]\nkeep-step = [1, 2]\nmax-size = "1.5 TiB"\n',
        '[policies.a]\nkeep-best = 2\nmetric = "acc:max"\n',
        "grace = 0\n",
        "grace = 1.5\n",
        "[sources]\nbase = []\n",
        '[policies.a]\nkeep-within = "1.5h"\nkeep-every = 1\nkeep-last = 0\n',
    ],
)
def test_what_is_no_mistake(text: str, tmp_path: Path) -> None:
    (tmp_path / "ckpt.toml").write_text(text)
    load(str(tmp_path), None)


def test_a_project_s_file_may_say_it_in_other_ways(tmp_path: Path) -> None:
    for text in (
        'tool.ckpt.root = "a"\n',
        'tool = {ckpt = {root = "a"}}\n',
        '["tool"."ckpt"]\nroot = "a"\n',
        '[tool]\nckpt.root = "a"\n',
        '[ tool . ckpt ]\nroot = "a"\n',
    ):
        (tmp_path / "pyproject.toml").write_text(text)
        assert load(str(tmp_path), None).root == str(tmp_path / "a"), text
    for text in ("tool = 3\nckpt = 4\n", "[tool]\nx.ckpt = 1\n", "[project]\nckpt = 1\n"):
        (tmp_path / "pyproject.toml").write_text(text)
        assert load(str(tmp_path), None) == Settings(), text
    (tmp_path / "pyproject.toml").write_text("\n[[tool.ckpt]]\n")
    with pytest.raises(CkptError, match=r"line 2: tool.ckpt is a table"):
        load(str(tmp_path), None)


def test_a_pipe_of_that_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ckpt.toml")
    assert load(str(tmp_path), None) == Settings()


def test_a_user_s_file_that_may_not_be_read_is_a_warning(
    call: Run, demo_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under sudo, or in a container with somebody else's home. One that is broken is an error, as any other is;
    and so is a project's that may not be read: its root would be another's.
    """
    user = tmp_path / "config/ckpt/ckpt.toml"
    user.parent.mkdir(parents=True)
    user.write_text("grace = 3\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def refuse(what: Path) -> None:
        def opener(path: str, flags: int) -> int:
            if path == str(what):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return os.open(path, flags)

        monkeypatch.setattr("ckpt_cli.settings.without_waiting", opener)

    refuse(user)
    for arguments in (["list"], ["latest"], ["inspect", "meta"], ["prune", "--keep", "1", "-n"]):
        done = call(*arguments, "--root", demo_tree)
        assert done.code == 0
        assert done.err.count(f"warning: {user} cannot be read: Permission denied: it counts as empty") == 1
    project = tmp_path / "empty/ckpt.toml"
    project.write_text("grace = 3\n")
    refuse(project.resolve())
    done = call("list", "--root", demo_tree)
    assert (done.code, done.out) == (2, "")
    assert f"error: {project.resolve()} cannot be read: Permission denied" in done.err
    project.unlink()
    user.write_text("grace = \n")
    broken = call("list", "--root", demo_tree)
    assert (broken.code, broken.out) == (2, "")
    assert f"{user}, line 1: invalid value" in broken.err


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
        ("ckpt.toml", '[policies.a]\nmetric = "x:min"\n[policies.b]\nkeep = 1\nbad = 2\n[sources]\nbad = 3\n', 5),
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
