"""What old metadata lacks or says wrongly: one declarative entry each. No I/O.

An entry looks at a configuration beside the shapes of the tensors and answers with findings: a key and the value it
should have, or, where nothing decides it, why not. Dates and commits are nanochat's, if nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ckpt_cli.fitted import HEADED, Fit, decoder_fits, gpt2_fits, nanochat_fits, params_fits, unknown
from ckpt_cli.revisions import PADDING, revision_of

Shape = tuple[int, ...]
_GPT2 = ("nano-gpt", "nanoGPT", "build-nanogpt")
_SAME_MODEL = ("n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size")
_LATER_STAGES = ("mid", "sft")


class Missing:
    """That a key has no value."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()


class Subject(NamedTuple):
    """A configuration and what it is about.

    `kind` is who wrote it: nanochat, nano-gpt, nanoGPT, build-nanogpt, hf (a config.json), meta (a params.json).
    `source` is the stage of training: base, mid, sft, rl; None where that is not known.
    `shapes` are those of the model's tensors by the model's own names. `base` gives the configuration of the base run
    of the same tag, None where there is none.
    """

    kind: str
    source: str | None
    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    base: Callable[[], Mapping[str, Any] | None]

    @property
    def revision(self) -> str:
        """Of a model of nanochat: a key of `revisions.REVISIONS`."""
        return revision_of(self.shapes, self.config)


class Finding(NamedTuple):
    """A key, the value it should have, and why; MISSING for a value that nothing decides."""

    key: str
    value: Any
    reason: str


class Migration(NamedTuple):
    """One thing that old metadata may lack or say wrongly.

    `kinds` are the writers, `revisions` the times it is about, `source` where it is known from.
    """

    meaning: str
    kinds: tuple[str, ...]
    revisions: str
    source: str
    find: Callable[[Subject], Iterable[Finding]]


def _has_pattern(config: Mapping[str, Any]) -> bool:
    """Whether it says which windows there are; null is nothing that the trainer could use."""
    return config.get("window_pattern") is not None


def _unwindowed(subject: Subject) -> Iterator[Finding]:
    """Of what was trained before there were windows."""
    if not _has_pattern(subject.config) and subject.revision == "v1":
        yield Finding("window_pattern", "L", "a v1 model has no windows: full context, as it was trained")


def _windowed(subject: Subject) -> Iterator[Finding]:
    """Of what was trained with windows, or may have been; a base run always says which."""
    if _has_pattern(subject.config) or subject.revision == "v1":
        return
    early = subject.revision == "lambdas"
    base = subject.base()
    if base is not None and (differing := _other_model(subject.config, base)):
        why = f"the base run of the same tag is another model: its {differing} differs"
    elif base is not None and isinstance(pattern := base.get("window_pattern"), str) and pattern:
        if subject.source in _LATER_STAGES or not pattern.upper().strip("L"):
            reason = f"the base of the same tag was trained with {pattern}, and mid and SFT runs did not write it down"
            yield Finding("window_pattern", pattern, reason)
            return
        why = f"the base of the same tag was trained with {pattern}, but this one may have lost it before its training"
    elif early and (base is not None or subject.source == "base"):
        yield Finding("window_pattern", "L", "a lambdas model has no windows: full context, as it was trained")
        return
    elif subject.source == "base":
        why = "a base run says it, and this one does not"
    else:
        why = "the base run of the same tag, which says it, is not there"
    yield Finding("window_pattern", MISSING, f"it is lost, and the trainer would take L in silence: {why}")


def _other_model(config: Mapping[str, Any], base: Mapping[str, Any]) -> str | None:
    """The key by which two configurations are of different models."""
    return next((key for key in _SAME_MODEL if key in config and key in base and config[key] != base[key]), None)


def _told_by(
    fits: Callable[[Mapping[str, Any], Mapping[str, Shape]], Iterable[Fit]],
) -> Callable[[Subject], Iterator[Finding]]:
    """Findings of a rule that tells what fits the shapes; a base of the same shapes decides what they leave open."""

    def find(subject: Subject) -> Iterator[Finding]:
        for fit in fits(subject.config, subject.shapes):
            if fit.value is not None:
                yield Finding(fit.key, fit.value, fit.reason)
                continue
            base = subject.base() if subject.kind == "nanochat" else None
            told = base.get(fit.key) if base else None
            if base and told is not None and all(other.key != fit.key for other in fits(base, subject.shapes)):
                yield Finding(fit.key, told, f"{fit.reason}; the base of the same tag says {told}, which fits")
                continue
            yield Finding(fit.key, MISSING, fit.reason)

    return find


MIGRATIONS = (
    Migration(
        "window_pattern is missing in models from before there were windows",
        ("nanochat",),
        "v1: 2025-10-13 to 2026-01-11",
        "the trainer since fbc1484 takes L for it, which is what these models compute",
        _unwindowed,
    ),
    Migration(
        "window_pattern is missing in lambdas models, and lost in mid and SFT metadata",
        ("nanochat",),
        "lambdas: 2026-01-11; window, ve32, engram: 2026-01-11 to 2026-02-01, when 8b4849d wrote it down",
        "the base metadata of the same tag, which always has it since b33e394",
        _windowed,
    ),
    Migration(
        "layers, width, heads and vocabulary contradict the tensors, or are missing",
        ("nanochat",),
        "all",
        f"the shapes; the vocabulary is padded to a multiple of {PADDING} since f1bf69d (2025-12-23)",
        _told_by(nanochat_fits),
    ),
    Migration(
        "layers, width, vocabulary, block_size and bias contradict the tensors, or are missing",
        _GPT2,
        "nanoGPT before 2023 wrote no bias, and always had them",
        "the shapes",
        lambda subject: _told_by(lambda config, shapes: gpt2_fits(config, shapes, subject.kind == "nanoGPT"))(subject),
    ),
    Migration(
        "config.json contradicts the tensors, or lacks what its class would guess wrongly",
        ("hf",),
        "transformers 4 and 5; nano-gpt's own export writes no n_positions",
        f"the shapes, in the names of {', '.join(sorted(HEADED))} and gpt2",
        _told_by(decoder_fits),
    ),
    Migration(
        "params.json contradicts the tensors, or lacks n_kv_heads",
        ("meta",),
        "Llama 1 to 3",
        "the shapes",
        _told_by(params_fits),
    ),
)

# Of each revision of nanochat: what no metadata can say to a newer trainer, and what works instead. The rope base, the
# scale of q and k, the factor of the gates and the length of a window changed without a key in the configuration.
_BEYOND = {
    "v1": "nanochat since 2026-01-18 has value embeddings, which this model lacks",
    "lambdas": "nanochat since 2026-01-18 has value embeddings, which this model lacks",
    "window": "nanochat since 2026-01-18 has value embeddings, which this model lacks",
    "ve32": "nanochat since 2026-03-09 has smaller gates, another rope base and another scale of q and k, and since "
    "2026-03-03 it caps logits at 20",
    "engram": "nanochat since 2026-01-28 has no bigram embeddings",
    "ve12": "nanochat since 2026-03-14 has a smeared embedding and another scale of q and k",
    "v0": "no nanochat of the main branch has ungated value embeddings",
    "moe": "no nanochat of the main branch has experts",
    "moe3": "no nanochat of the main branch has experts",
}


def findings(subject: Subject) -> list[Finding]:
    """What should change in a configuration, and what is wrong with it and cannot be decided; one finding a key."""
    found: dict[str, Finding] = {}
    for migration in MIGRATIONS:
        if subject.kind in migration.kinds and subject.shapes:
            for finding in migration.find(subject):
                found.setdefault(finding.key, finding)
    return list(found.values())


def unseen(subject: Subject) -> str | None:
    """Why nothing can be found in a configuration, None where it is looked at."""
    if not subject.kind:
        return "it holds no configuration of a known trainer"
    return unknown(subject.kind, subject.config, subject.shapes)


def beyond(subject: Subject) -> str | None:
    """Why a newer trainer cannot be made to load a model by any patch, and what works instead; None where it can."""
    revision = subject.revision if subject.kind == "nanochat" and subject.shapes else ""
    if revision not in _BEYOND:
        return None
    instead = "load it with the nanochat of its own time, or with `ckpt load-test`"
    if revision == "v1":
        instead += ", or open it with transformers after `ckpt convert --to hf`"
    return f"no patch makes a newer trainer load this ({revision}): {_BEYOND[revision]}; {instead}"
