"""Where the outputs of a conversion go, and where they may not."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt_cli.errors import CkptError, Refused

# Targets that are a folder, and what a file of the others ends in.
FOLDERS = ("hf", "meta")
SUFFIXES = {"safetensors": ".safetensors", "pt": ".pt", "torchtune": ".pt"}
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def output_path(sources: Sequence[str], output: str | None, to: str = "safetensors", shards: bool = False) -> str:
    """Where the output goes: beside the source, into a directory under its default name, or where `output` says.

    Of a target that is a folder, its path; of shards their common path, without number and `.safetensors`. Raises
    CkptError where it must be said and is not, and where nothing can be written there.
    """
    if output is None:
        why = _needs_output(sources, to, shards)
        if why:
            raise CkptError(why, "-o OUT says where to write it")
        return os.path.join(os.path.dirname(sources[0]), default_name(sources, to))
    if not output:
        raise CkptError("-o is empty")
    inside = output.endswith(os.sep)
    output = os.path.abspath(os.path.expanduser(output))
    inside = inside or os.path.isdir(output)
    if to in FOLDERS:
        if os.path.lexists(output) and not os.path.isdir(output):
            raise CkptError(f"{output} is a file, and {to} is written as a folder")
        return output
    if shards:
        stem = output.removesuffix(".safetensors")
        return stem if stem != output and not inside else os.path.join(output, "model")
    if inside:
        return os.path.join(output, default_name(sources, to))
    if not os.path.isdir(os.path.dirname(output)):
        raise CkptError(f"there is no directory {os.path.dirname(output)} to write to")
    return output


def _needs_output(sources: Sequence[str], to: str, shards: bool) -> str | None:
    """Why there is no place to take for granted; None where the output goes beside the source."""
    if to in FOLDERS or shards:
        return f"{to} is written as a folder" if to in FOLDERS else "shards are several files"
    if to != "safetensors":
        return f"a file for {to} has no default name"
    if len(sources) > 1 or os.path.basename(sources[0]).endswith(".metadata"):
        return f"the source is {'in several files' if len(sources) > 1 else 'a folder'}: {sources[0]}"
    return None


def default_name(sources: Sequence[str], to: str) -> str:
    """`<stem of the source><suffix of the target>`; `model` is the stem of what lies in several files."""
    stem = os.path.splitext(os.path.basename(sources[0]))[0]
    if len(sources) > 1 or not stem or stem.startswith("."):
        stem = "model"
    return stem + SUFFIXES.get(to, "")


def of_part(folder: str, sources: Sequence[str], to: str, shards: bool) -> str:
    """The output for one of several files of a part, which keeps its stem, in a folder that may have to be made."""
    return os.path.join(folder, default_name(sources, "" if shards else to))


def of_checkpoint(folder: str, name: str, to: str, shards: bool) -> str:
    """The output of one checkpoint of several, as `output_path` gives it: a file that is called after its ref, or a
    folder that is. No two refs are the same."""
    if to in FOLDERS:
        return os.path.join(folder, name)
    return os.path.join(folder, name, "model") if shards else os.path.join(folder, name + SUFFIXES[to])


def refuse_outputs(outputs: Sequence[str], sources: Sequence[str], force: bool) -> None:
    """Raises CkptError for an output that is, or links to, a source; Refused for one that is there already, and for a
    folder that holds other weights, which a reader would take for a part of these, or before them."""
    names = {os.path.realpath(source) for source in sources}
    for output in outputs:
        if os.path.realpath(output) in names or any(_same(output, source) for source in sources):
            raise CkptError(f"{output} is the source itself", "-o OUT writes elsewhere")
    for output in outputs:
        if os.path.lexists(output) and not force:
            raise Refused(f"{output} is there already", "--force replaces it")
    if len(outputs) > 1:
        _refuse_mixture(outputs)


def _refuse_mixture(outputs: Sequence[str]) -> None:
    """Raises Refused for a folder with other files of weights that are called as these are, number and all aside."""
    ours = set(outputs)
    for folder in {os.path.dirname(output) for output in outputs if output.endswith(_WEIGHTS)}:
        stems = tuple(
            os.path.basename(output).partition(".")[0].partition("-")[0]
            for output in outputs
            if os.path.dirname(output) == folder and output.endswith(_WEIGHTS)
        )
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            if name.startswith(stems) and name.endswith(_WEIGHTS) and os.path.join(folder, name) not in ours:
                raise Refused(f"{folder} holds other weights: {name}", "-o OUT writes elsewhere")


def _same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
