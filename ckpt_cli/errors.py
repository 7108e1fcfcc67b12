"""One error type: a sentence, a hint and an exit code. `app` prints it; nothing else does. How a sentence counts."""

from __future__ import annotations

# Kinds of what was not looked into, and may be whole.
NOT_LOOKED_INTO = ("unreadable-part", "too-costly")


class CkptError(Exception):
    """A wrong call or an unusable input (exit 2); the children below carry the other exit codes.

    `message` is one sentence without a full stop; `hint`, where there is one, names what to run; `path` is the
    file it is about, where it is about one, `record` the part of that file. A reader that knows exactly what is wrong
    gives it as `kind`; `ckpt_cli.verify` lists these.
    """

    code = 2
    # How the failure is called among the `problems` of a JSON object.
    kind = "unusable"

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        path: str | None = None,
        *,
        kind: str | None = None,
        record: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = path
        self.kind = kind or self.kind
        self.record = record

    @property
    def problem(self) -> dict[str, str | None]:
        """As it stands among the `problems` of a JSON object."""
        return {"code": self.kind, "detail": self.message, "path": self.path}


class NotFound(CkptError):
    """A search that found nothing, or a question whose answer is no."""

    code = 1
    kind = "not-found"


class Damaged(CkptError):
    """A checkpoint that is not as it was written: truncated, a flipped bit, a record gone."""

    code = 1
    kind = "damaged"


class Refused(CkptError):
    """Refused for safety."""

    code = 4


class Interrupted(CkptError):
    """Ctrl-C, after everything was put back."""

    code = 130


def counted(number: float, noun: str, form: str = "") -> str:
    """`1 file`, `2 files`; the number as `form` has it."""
    return f"{number:{form}} {noun}{'s'[: number != 1]}"


EXIT_CODES = {
    0: "done, or yes",
    1: "the answer is no: nothing found, a failed test, damage, or declined",
    2: "wrong usage or input: what is named is not there, or is no checkpoint",
    3: "some of several targets failed",
    4: "refused for safety: no terminal nor --yes, an existing output, a rule",
    130: "interrupted",
}
