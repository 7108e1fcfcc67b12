"""What a prune may reach: runs as a whole, one of them where all of it goes, and nothing above the root."""

from __future__ import annotations

import os
from shlex import quote

from ckpt_cli.errors import CkptError, Refused
from ckpt_cli.query import Query


def runs_only(query: Query) -> Query:
    """The query; raises CkptError where it names a step or a file."""
    if query.step or query.file:
        raise CkptError(
            f"prune takes runs, not {query.file or 'a step'}",
            "name a run, as in SOURCE/TAG, and keep a step by --keep-step",
        )
    return query


def names_one_run(query: Query) -> bool:
    """A tag of one source, or a directory that is the run itself: one run that lies in the root is not enough."""
    dirs = {c.run_dir for c in query.pool}
    return len(dirs) == 1 and bool(query.tag or (query.root.origin == "TARGET" and dirs == {query.root.path}))


def refuse_outside(query: Query) -> None:
    """Raises Refused where the root is one step's folder: its run, what its steps share and the trash lie above."""
    above = query.root.path.rstrip(os.sep) + os.sep
    for checkpoint in query.pool:
        if not f"{checkpoint.run_dir}{os.sep}".startswith(above):
            where = os.path.realpath(checkpoint.run_dir)
            raise Refused(
                f"the run of {checkpoint.ref} lies in {where}, outside the root", f"--root {quote(where)} prunes it"
            )
