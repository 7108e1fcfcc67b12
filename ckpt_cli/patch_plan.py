"""What would change in the metadata of each checkpoint, by the migrations or by hand, and what stands against it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from shlex import quote
from typing import Any, Literal, NamedTuple

from ckpt_cli.checkpoint import Checkpoint, Problem
from ckpt_cli.contents import read_files
from ckpt_cli.described import base_metadata, model_paths
from ckpt_cli.discover import SOURCES
from ckpt_cli.errors import NOT_LOOKED_INTO, CkptError, Damaged, Refused
from ckpt_cli.maps import naming_of
from ckpt_cli.migrations import MISSING, Subject, beyond, findings, unseen
from ckpt_cli.origin import unwrapped
from ckpt_cli.patch import Change, Document, apply, document_of, kept_float, located, misfit, mistyped, same
from ckpt_cli.tensor_file import TensorFile

_FORCE = "--force sets it all the same"
_WINDOWS = re.compile("[SsLl]+")
# What layouts call a part of the model that is missing.
_OF_THE_MODEL = ("a shard", "shard ", "a data file", "the model", "the index", "a component")
# Layouts whose model files always hold a configuration.
_KEPT_INSIDE = ("nano-gpt", "nanoGPT", "build-nanogpt")


class Hand(NamedTuple):
    """An edit by hand: a dotted key and its value, MISSING to take the key away."""

    key: str
    value: Any


class Planned(NamedTuple):
    """What becomes of one checkpoint, or of a file of none.

    `unclear` are findings that nothing decides, `failure` why it could not be looked at or may not be changed, `note`
    why no patch makes a newer trainer load it, `skipped` why there is nothing in it to look at.
    """

    ref: str | None
    path: str
    checkpoint: Checkpoint | None
    before: Document | None = None
    after: Document | None = None
    changes: tuple[Change, ...] = ()
    unclear: tuple[Problem, ...] = ()
    failure: CkptError | None = None
    note: str | None = None
    skipped: str | None = None

    @property
    def state(self) -> Literal["changes", "fine", "unclear", "failed", "skipped"]:
        if self.failure:
            return "failed"
        if self.skipped:
            return "skipped"
        return "changes" if self.changes else "unclear" if self.unclear else "fine"

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.ref or self.path

    @property
    def run(self) -> str:
        """The directory that the old file is kept in."""
        above = self.checkpoint.run_dir if self.checkpoint else os.path.dirname(os.path.abspath(self.path))
        return os.path.realpath(above)


def parse_hands(sets: Sequence[str], unsets: Sequence[str]) -> list[Hand]:
    """--set KEY=JSON and --unset KEY; what is no JSON is text. Raises CkptError for what names a key twice."""
    hands = [Hand(key, MISSING) for key in unsets]
    for said in sets:
        key, equals, text = said.partition("=")
        if not equals or not key:
            raise CkptError(f"--set takes KEY=VALUE, not {said[:80]!a}", "--set model_config.window_pattern=SSSL")
        hands.append(Hand(key, _value(key, text)))
    for number, hand in enumerate(hands):
        if not hand.key or any(hand.key == other.key for other in hands[:number]):
            raise CkptError(f"{hand.key!a} is named twice" if hand.key else "--unset takes a key")
    return hands


def _value(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CkptError(f"the value for {key!a} is nested too deep") from error
    except ValueError as error:
        if text.strip()[:1] in ("{", "[", '"') or re.fullmatch(r"\s*-?[0-9]{4000,}\s*", text):
            raise CkptError(f"the value for {key!a} is no JSON: {str(error)[:80]}") from error
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CkptError(f"the value for {key!a} is no text") from None
        return text


def plan(
    checkpoint: Checkpoint | None,
    file: str | None,
    hands: Sequence[Hand],
    force: bool,
    found: Sequence[Checkpoint] = (),
    sources: Mapping[str, str] = SOURCES,
) -> Planned:
    """The plan for one checkpoint, or for a file that is part of none; `found` are the checkpoints around it.

    A failure is part of the plan, not raised.
    """
    path = file or (checkpoint.dir if checkpoint else "")
    planned = Planned(checkpoint.ref if checkpoint else None, path, checkpoint)
    try:
        if checkpoint and checkpoint.linked:
            where = os.path.realpath(checkpoint.run_dir)
            raise Refused(
                f"{checkpoint.ref} lies outside the root, in {where}", f"--root {quote(where)} patches it there"
            )
        if checkpoint and checkpoint.state == "in-progress" and not force:
            raise Refused(f"{checkpoint.ref} is still being written", "--force patches it all the same")
        document, why = _document(checkpoint, file, bool(hands))
        if document is None:
            if hands:
                raise CkptError(f"{planned.label} has no configuration of its own that could be edited")
            return planned._replace(skipped=why)
        planned = planned._replace(path=document.path, before=document)
        _check_place(planned)
        base = cache(lambda: _base_of(checkpoint, found, sources))
        look = partial(_subject, checkpoint, _shapes(checkpoint, document, bool(hands) and force), base)
        if hands:
            return _by_hand(planned, document, hands, force, look)
        return _migrated(planned, document, look(document))
    except CkptError as error:
        error.path = error.path or planned.path
        return planned._replace(failure=error)
    except OSError as error:
        return planned._replace(
            failure=CkptError(f"{planned.path} cannot be read: {error.strerror}", path=planned.path)
        )


def left_alone(checkpoint: Checkpoint, every: bool) -> Planned | None:
    """The plan for one of many that is not looked at for what it is, None for any other. Asked for alone it is refused,
    and so is a run that lies elsewhere unless `every` one is meant.
    """
    why = None
    if checkpoint.linked and every:
        why = f"it lies outside the root, in {os.path.realpath(checkpoint.run_dir)}"
    elif checkpoint.state == "in-progress" and not checkpoint.linked:
        why = "it is still being written"
    return Planned(checkpoint.ref, checkpoint.dir, checkpoint, skipped=why) if why else None


def _document(checkpoint: Checkpoint | None, file: str | None, wanted: bool) -> tuple[Document | None, str]:
    """The document, or why there is none: where nobody asks for it by name, a model file that holds no configuration of
    a known trainer's is none."""
    try:
        return document_of(checkpoint, file), "it has no configuration of its own"
    except CkptError as error:
        if wanted or checkpoint is None or checkpoint.layout in _KEPT_INSIDE or checkpoint.having("meta", "config"):
            raise
        return None, error.message


def _migrated(planned: Planned, document: Document, subject: Subject) -> Planned:
    """The plan with what the migrations would change."""
    if why := unseen(subject):
        return planned._replace(skipped=why)
    changes, unclear = [], []
    for finding in findings(subject):
        path = (*document.place, finding.key)
        if finding.value is MISSING:
            unclear.append(Problem("undecided", f"{'.'.join(path)}: {finding.reason}", document.path))
        else:
            old = subject.config.get(finding.key, MISSING)
            changes.append(Change(path, old, finding.value, finding.reason))
    after = apply(document, changes) if changes else None
    # As it will be: what was lost may have hidden which revision it is.
    note = beyond(subject._replace(config=(after or document).config))
    return planned._replace(changes=tuple(changes), unclear=tuple(unclear), after=after, note=note)


def _by_hand(
    planned: Planned, document: Document, hands: Sequence[Hand], force: bool, look: Callable[[Document], Subject]
) -> Planned:
    """The plan with edits by hand. Raises CkptError for one that does not fit, unless it is forced."""
    changes = []
    for hand in hands:
        path, old = _placed(document, hand, force)
        new = kept_float(document, old, hand.value)
        if same(old, new) or (old is MISSING and new is MISSING):
            continue
        key = ".".join(path)
        if not force and (why := misfit(old, new)):
            raise CkptError(f"{key} of {planned.label} is not changed: {why}", _FORCE)
        if not force and old is MISSING and path[-1] != "window_pattern" and (near := mistyped(document, path)):
            raise CkptError(f"{planned.label} has no key {key!a}", f"did you mean {near}; {_FORCE}")
        changes.append(Change(path, old, new, "by hand"))
    if not changes:
        return planned
    after = apply(document, changes)
    if not force:
        _check_shapes(planned.label, document.place, look(after), changes)
    return planned._replace(changes=tuple(changes), after=after)


def _placed(document: Document, hand: Hand, force: bool) -> tuple[tuple[str, ...], Any]:
    try:
        return located(document, hand.key)
    except CkptError as error:
        if hand.value is MISSING and isinstance(document.value, dict):
            return (hand.key,), MISSING
        if force:
            error.hint = error.hint or "make the object above it first"
        raise


def _check_shapes(label: str, place: tuple[str, ...], subject: Subject, changes: Sequence[Change]) -> None:
    """Raises CkptError for an edit of the configuration, which lies at `place`, that the tensors, or the trainer,
    contradict."""
    edited = {change.path[-1]: change for change in changes if change.path[:-1] == place}
    for finding in findings(subject):
        if finding.key in edited:
            raise CkptError(f"{edited[finding.key].key} of {label} is not changed: {finding.reason}", _FORCE)
    pattern = edited.get("window_pattern")
    if pattern is None or subject.kind != "nanochat" or pattern.new is MISSING:
        return
    if not isinstance(pattern.new, str) or not _WINDOWS.fullmatch(pattern.new):
        raise CkptError(f"window_pattern is made of S and L, not {pattern.new!a}", _FORCE)


def _subject(
    checkpoint: Checkpoint | None,
    shapes: Mapping[str, tuple[int, ...]],
    base: Callable[[], Mapping[str, Any] | None],
    document: Document,
) -> Subject:
    source = checkpoint.source if checkpoint else None
    settings = document.value.get("user_config") if isinstance(document.value, dict) else None
    if source is None and isinstance(settings, dict) and "depth" in settings:
        source = "base"  # only its script has that setting
    return Subject(document.kind, source, document.config, shapes, base)


def _base_of(
    checkpoint: Checkpoint | None, found: Sequence[Checkpoint], sources: Mapping[str, str]
) -> Mapping[str, Any] | None:
    meta = base_metadata(checkpoint, found, sources)
    config = meta.get("model_config") if meta else None
    return config if isinstance(config, dict) else None


def _shapes(checkpoint: Checkpoint | None, document: Document, forced: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's tensors by its own names; none for a configuration that nothing is known of.

    Raises CkptError where the tensors cannot be read, unless the edit is forced.
    """
    if not document.kind:
        return {}
    try:
        if checkpoint is not None and not document.file and (lost := _lost(checkpoint)):
            raise Damaged(lost.detail)
        files: Iterable[TensorFile] = [document.file] if document.file else []
        if not document.file and checkpoint is not None:
            files = read_files(model_paths(checkpoint, None))
        named = {unwrapped(t.name): t.shape for file in files for t in file.tensors if t.form != "slice"}
    except CkptError as error:
        if forced:
            return {}
        said = f"nothing can be told of {document.name}, for the tensors cannot be read: {error.message}"
        raise type(error)(said, error.hint, error.path) from error
    _, prefix = naming_of(list(named))
    return {name[len(prefix) :]: shape for name, shape in named.items() if name.startswith(prefix)}


def _lost(checkpoint: Checkpoint) -> Problem | None:
    """What of the model is not there: fewer tensors would look like fewer layers."""
    indexes = {part.path for part in checkpoint.having("index")}
    return next(
        (
            problem
            for problem in checkpoint.problems
            if problem.code in ("bad-index", "unfinished")
            or (problem.code in NOT_LOOKED_INTO and problem.path in indexes)
            or (problem.code == "missing-part" and problem.detail.startswith(_OF_THE_MODEL))
        ),
        None,
    )


def _check_place(planned: Planned) -> None:
    """Raises Refused for a document that a symbolic link puts somewhere else."""
    real = os.path.realpath(planned.path)
    if not real.startswith(planned.run.rstrip(os.sep) + os.sep):
        raise Refused(f"{planned.path} is a symbolic link to {real}", "patch that one where it is")
