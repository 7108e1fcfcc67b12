"""Writes the completion scripts beside it from the app's own commands and options: `make completions`.

`ckpt.bash`, `_ckpt` and `ckpt.fish` are static: pressing TAB starts no Python. What an option takes is read off its
metavar: `a|b|c` are values, `DIR` and `FILE` are paths, and a few names stand for what lies in the root.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import typer

from ckpt_cli.app import app
from ckpt_cli.discover import SOURCES
from ckpt_cli.families import families

HERE = Path(__file__).parent
# Directories of nanochat that hold no checkpoints.
ASIDE = "eval_bundle report tokenizer"
SUFFIXES = ("pt", "bin", "safetensors", "ckpt", "pth")
_KINDS = {
    "--root": "@dir", "--source": "@source", "--tag": "@tag", "--step": "latest best",
    "--family": "@family", "DIR": "@dir", "FILE": "@file",
    "PATH": "@file", "OUT": "@file", "[TARGET]": "@ref", "A": "@ref", "B": "@ref", "[DIR]": "@dir",
}  # fmt: skip


class Option(NamedTuple):
    names: tuple[str, ...]
    help: str
    offer: str | None  # None where it takes no value


class Command(NamedTuple):
    name: str
    help: str
    options: list[Option]
    offer: str


def commands() -> list[Command]:
    """Every command, `inspect meta` and the like by both words; the app itself first, under an empty name."""
    return list(_below("", typer.main.get_command(app)))


def _below(name: str, command: Any) -> Any:
    context = typer.Context(command)
    options = [_option(p) for p in command.params if p.param_type_name == "option" and not p.hidden]
    options.append(Option(("-h", "--help"), "Show this message and exit.", None))
    inner = command.list_commands(context) if hasattr(command, "list_commands") else []
    places = [p for p in command.params if p.param_type_name == "argument"]
    offer = " ".join(inner) or " ".join(dict.fromkeys(_KINDS.get(p.metavar or "", "@file") for p in places))
    yield Command(name, command.get_short_help_str(200), options, offer)
    for one in inner:
        yield from _below(f"{name} {one}".strip(), command.get_command(context, one))


def _option(param: Any) -> Option:
    if param.is_flag:
        return Option(tuple(param.opts), param.help or "", None)
    metavar = param.metavar or ""
    kind = next((_KINDS[name] for name in (*param.opts, metavar) if name in _KINDS), None)
    # What stands in brackets may follow a word, and is none by itself.
    words = re.sub(r"\[[^]]*\]", "", metavar).split("|")
    offer = kind or " ".join(_KINDS.get(word, word) for word in words if word in _KINDS or word.islower())
    offer = offer.replace("@source", " ".join(dict.fromkeys(SOURCES.values())))
    known = " ".join(name for one in families() for name in one.NAMES if "*" not in name)
    return Option(tuple(param.opts), param.help or "", offer.replace("@family", known))


def scripts() -> dict[str, str]:
    """The scripts by file name."""
    found = commands()
    takes = sorted({name for c in found for option in c.options if option.offer is not None for name in option.names})
    flags = {name for c in found for option in c.options if option.offer is None for name in option.names}
    assert not flags & set(takes), "an option that takes a value is a flag elsewhere"
    globs = [f'"$1"/{depth}*.{suffix}' for depth in ("", "*/", "*/*/") for suffix in SUFFIXES]
    refs = (HERE / "templates" / "refs.sh").read_text().strip()
    refs = refs.replace("@GLOBS@", " ".join(globs)).replace("@ASIDE@", ASIDE)
    refs = refs.replace("@SOURCES@", " ".join(f"{source}:{name}" for name, source in SOURCES.items()))
    groups = [c.name for c in found if c.name and any(other.name.startswith(f"{c.name} ") for other in found)]
    parts = {
        "REFS": refs,
        "REFS_QUOTED": refs.replace("\\", "\\\\").replace("'", "\\'"),
        "TAKES": " ".join(takes),
        "GROUP": "|".join(groups),
        "VALUES": _cases(_values(found)),
        "OPTIONS": _cases([(f"'{c.name}'", f"offer='{_names(c)}'") for c in found]),
        "PLACES": _cases([(f"'{c.name}'", f"offer='{c.offer}'") for c in found]),
        "DESCRIBED_OPTIONS": _cases([(f"'{c.name}'", f"found=({_described(_options(c))})") for c in found]),
        "DESCRIBED_PLACES": _cases([(f"'{c.name}'", _zsh_place(c, found)) for c in found]),
        "FISH": "\n".join(_fish(found)),
    }
    made = {}
    for name in ("ckpt.bash", "_ckpt", "ckpt.fish"):
        text = (HERE / "templates" / name).read_text()
        for key in sorted(parts, key=len, reverse=True):
            text = text.replace(f"@{key}@", parts[key])
        made[name] = text
    return made


def _cases(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"            {pattern}) {then} ;;" for pattern, then in rows)


def _values(found: list[Command]) -> list[tuple[str, str]]:
    """An option's values, by command and name: once for all commands where they agree."""
    by_name: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for c in found:
        for option in c.options:
            if option.offer is not None:
                by_name.setdefault(option.names, {}).setdefault(option.offer, []).append(c.name)
    rows = []
    for names, offers in by_name.items():
        for offer, owners in offers.items():
            before = [f"'{owner}" for owner in owners] if len(offers) > 1 else ["*'"]
            patterns = [f"{start} {name}'" for start in before for name in names]
            if offer:
                rows.append(("|".join(patterns), f"offer='{offer}'"))
    return rows


def _names(command: Command) -> str:
    return " ".join(name for option in command.options for name in option.names)


def _options(command: Command) -> list[tuple[str, str]]:
    return [(name, option.help) for option in command.options for name in option.names]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _described(rows: list[tuple[str, str]]) -> str:
    return " ".join(_quoted(f"{name}:{help.rstrip('.')}") for name, help in rows)


def _inner(command: Command, found: list[Command]) -> list[tuple[str, str]]:
    """The commands one level below: (name, help)."""
    depth = len(command.name.split()) + 1
    below = [c for c in found if c.name.startswith(f"{command.name} ".lstrip()) and len(c.name.split()) == depth]
    return [(c.name.split()[-1], c.help) for c in below]


def _zsh_place(command: Command, found: list[Command]) -> str:
    inner = _inner(command, found)
    return f"found=({_described(inner)})" if inner else f"offer='{command.offer}'"


def _fish(found: list[Command]) -> list[str]:
    lines = []
    for c in found:
        within = f'-n "__ckpt_in {_fish_quoted(c.name)}"'
        for name, help in _inner(c, found):
            lines.append(f"complete -c ckpt {within} -a {name} -d {_fish_quoted(help.rstrip('.'))}")
        if c.offer.startswith("@"):
            lines.append(f"complete -c ckpt {within} {_fish_offer(c.offer)}")
        here = f'-n "__ckpt_at {_fish_quoted(c.name)}"'
        for option in c.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            takes = "" if option.offer is None else f" -r {_fish_offer(option.offer)}".rstrip()
            lines.append(f"complete -c ckpt {here} {names}{takes} -d {_fish_quoted(option.help.rstrip('.'))}")
    return lines


def _fish_offer(offer: str) -> str:
    kinds = {"@dir": "'(__fish_complete_directories)'", "@file": "'(__fish_complete_path)'"}
    kinds |= {"@ref": "'(__ckpt_refs ref)'", "@tag": "'(__ckpt_refs tag)'"}
    words = [word for word in offer.split() if not word.startswith("@")]
    asked = [kinds[word] for word in offer.split() if word.startswith("@")]
    if not asked:
        return f"-a '{' '.join(words)}'" if words else ""
    # Steps stay in their order.
    return f"{'-k ' if asked == [kinds['@ref']] else ''}-a {asked[0]}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def main() -> None:
    for name, text in scripts().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
