"""ckpt inspect tensors"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from ckpt_cli.checkpoint import Checkpoint, TensorFile, TensorInfo
from ckpt_cli.commands import options
from ckpt_cli.errors import CkptError, NotFound
from ckpt_cli.formats import Files
from ckpt_cli.selector import Query
from ckpt_cli.tensors import check_storage, digest, read_tensors, readable, storages_of
from ckpt_cli.ui import out, text
from ckpt_cli.ui.out import Cell, Column

app = options.new_app()


@app.command(epilog=options.EPILOG)
def tensors(
    target: options.Target = None,
    root: options.Root = None,
    source: options.Source = None,
    tag: options.Tag = None,
    step: options.Step = None,
    part: Annotated[str | None, typer.Option("--part", metavar="model|optimizer|PATH", help="Which files.")] = None,
    pattern: Annotated[str | None, typer.Option("--filter", metavar="GLOB", help="Only names that match.")] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="KEY", help="file, name or bytes.")] = "file",
    hashes: Annotated[bool, typer.Option("--hash", help="sha256 of each tensor's bytes; reads all of them.")] = False,
    format: options.Format = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """List the tensors of a checkpoint or file: name, dtype, shape, bytes, sharing.

    \b
    examples:
      ckpt inspect tensors d12
      ckpt inspect tensors ./model.pt --filter '*.attn.*' --sort bytes
      ckpt inspect tensors d12 --part optimizer --hash --json
    """
    chosen = out.pick_format(format, as_json, quiet)
    if sort not in ("file", "name", "bytes"):
        raise CkptError(f"{sort!a} is nothing to sort by: file, name or bytes")
    empty = {"tensors": [], "totals": _totals([]), "files": [], "foreign_globals": [], "values": {}}
    with out.answering("inspect tensors", chosen, empty):
        query = options.look(target, root, source, tag, step)
        return _tensors(query, part, pattern, sort, hashes, chosen)


def _tensors(query: Query, part: str | None, pattern: str | None, sort: str, hashes: bool, chosen: out.Format) -> int:
    files = [read_tensors(path) for path in _paths(query, options.look_for_subject(query), part)]
    listed = [(file, tensor) for file in files for tensor in file.tensors if _wanted(tensor, pattern)]
    if sort != "file":
        listed.sort(key=lambda pair: pair[1].name if sort == "name" else -pair[1].bytes)
    digests = _digests(listed) if hashes else {}
    totals = _totals([tensor for _, tensor in listed])
    foreign = [name for file in files for name in file.foreign_globals]
    for file in files:
        for said in file.notes:
            out.warning(f"{file.path}: {said}")
    if chosen == "json":
        out.emit_json(
            "inspect tensors",
            {
                "tensors": [_record(file, tensor, digests) for file, tensor in listed],
                "totals": totals,
                "files": [{"path": file.path, "container": file.container} for file in files],
                "foreign_globals": [{"name": name.name, "runs_code": name.runs_code} for name in foreign],
                "values": _values(files),
            },
        )
        return 0 if listed or pattern is None else 1
    if not listed and pattern is not None:
        raise NotFound(f"no tensor's name matches {pattern!a}")
    if foreign:
        out.note(f"names of classes that were not loaded: {', '.join(name.name for name in foreign)}")
    if chosen == "name":
        out.emit_lines(tensor.name for _, tensor in listed)
        return 0
    columns = [Column("TENSOR"), Column("DTYPE"), Column("SHAPE"), Column("SIZE", right=True), Column("STORAGE")]
    uses = _sharing(listed)
    rows = [_row(tensor, uses) for _, tensor in listed]
    if hashes:
        columns.append(Column("SHA256"))
        rows = [[*row, digests.get(id(tensor)) or "-"] for row, (_, tensor) in zip(rows, listed)]
    out.emit_rows(chosen, columns, rows)
    if chosen == "table":
        count = text.count(int(totals["tensors"]), "tensor")
        out.say(f"{count}, {totals['parameters']:,} parameters, {text.size(totals['bytes'])}")
        values = sum(len(file.values) for file in files)
        if values:
            out.say(f"{text.count(values, 'other value')}: --json shows them")
    return 0


def _paths(query: Query, checkpoint: Checkpoint | None, part: str | None) -> list[str]:
    """The files to read: the one that was named, or those of a role."""
    if part is None and query.file and not query.file.endswith((".json", ".sha256", ".keep")):
        return [query.file]
    if checkpoint is None:
        return [query.file] if query.file else []
    if part in (None, "model", "optimizer"):
        role = part or "model"
        paths = [p.path for p in checkpoint.parts if p.role == role]
        if not paths:
            raise CkptError(f"{checkpoint.ref} has no {role} file")
        return paths
    paths = [p.path for p in checkpoint.parts if part == os.path.basename(p.path) or _same(part, p.path)]
    if not paths:
        names = ", ".join(p.path.rsplit("/", 1)[-1] for p in checkpoint.parts)
        raise CkptError(f"{checkpoint.ref} has no part {part!a}", f"its parts are {names}")
    return paths


def _same(one: str, other: str) -> bool:
    return os.path.realpath(os.path.expanduser(one)) == os.path.realpath(other)


def _values(files: list[TensorFile]) -> dict[str, Any]:
    """Everything that is no tensor, by name; of several files with the file's name before it."""
    if len(files) == 1:
        return files[0].values
    return {f"{os.path.basename(file.path)}:{name}": value for file in files for name, value in file.values.items()}


def _wanted(tensor: TensorInfo, pattern: str | None) -> bool:
    return pattern is None or fnmatchcase(tensor.name, pattern)


def _digests(listed: list[tuple[TensorFile, TensorInfo]]) -> dict[int, str | None]:
    """sha256 by tensor; raises Damaged where a record that is read does not fit its CRC32."""
    found: dict[int, str | None] = {}
    with Files() as open_files:
        checked: set[tuple[str, int]] = set()
        for _, tensor in listed:
            for storage in storages_of(open_files, tensor):
                if (storage.file, storage.offset) not in checked:
                    checked.add((storage.file, storage.offset))
                    check_storage(open_files, storage)
            found[id(tensor)] = None if readable(tensor) else digest(open_files, tensor)
    return found


def _totals(listed: list[TensorInfo]) -> dict[str, int]:
    """Tensors by name; parameters and bytes with tied tensors counted once."""
    distinct: dict[Any, TensorInfo] = {}
    for tensor in listed:
        place = (tensor.storage.file, tensor.storage.name) if tensor.storage else id(tensor)
        distinct.setdefault((place, tensor.offset, tensor.shape, tensor.stride), tensor)
    return {
        "tensors": len(listed),
        "parameters": sum(tensor.elements for tensor in distinct.values()),
        "bytes": sum(tensor.bytes for tensor in distinct.values()),
    }


def _sharing(listed: list[tuple[TensorFile, TensorInfo]]) -> dict[tuple[str, str], int]:
    uses: dict[tuple[str, str], int] = {}
    for file, tensor in listed:
        if tensor.storage:
            uses[file.path, tensor.storage.name] = uses.get((file.path, tensor.storage.name), 0) + 1
    return uses


def _record(file: TensorFile, tensor: TensorInfo, digests: dict[int, str | None]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride),
        "bytes": tensor.bytes,
        "file": file.path,
        "offset": tensor.file_offset,
        "storage": tensor.storage and tensor.storage.name,
    }
    if tensor.form != "strided":
        record["form"] = tensor.form
    if digests:
        record["sha256"] = digests.get(id(tensor))
    return record


def _row(tensor: TensorInfo, uses: dict[tuple[str, str], int]) -> list[str | Cell]:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    storage = tensor.storage
    place = storage.name if storage else tensor.form
    shared = f"{place} (shared)" if storage and uses.get((storage.file, storage.name), 0) > 1 else place
    return [tensor.name, tensor.dtype, shape, Cell(text.size(tensor.bytes), str(tensor.bytes)), Cell(shared, place)]
