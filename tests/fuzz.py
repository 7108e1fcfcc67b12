"""Mutated files through the readers, for as long as one likes: `python -m tests.fuzz --seconds 3600 --jobs 2`.

Small real files that torch and safetensors write, and the hostile cases, are changed: anywhere, opcode by opcode,
field by field, with the checksums and the directory made right again so that the change reaches what lies behind
them. Of each it is demanded that nothing is raised but our own errors in one short line, that time, memory and bytes
read stay within bounds, and that what is read lies within the file. What leads to a new outcome is changed further.
A failure is written, with its traceback, to the directory of crashes; `--replay FILE` repeats it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import pickletools
import random
import re
import resource
import signal
import sys
import time
import traceback
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ckpt_cli.errors import CkptError, Damaged
from ckpt_cli.tensor_file import TensorFile, TensorInfo
from ckpt_cli.tensors import recognise
from tests.builders import Entry, field_names, name, number, storage, tensor, text, torch_entries, zip_file
from tests.hostile import cases

SECONDS = 2.0
HANGS = 20
SPARE = 512 << 20
LARGEST_SEED = 8192
MOST_SEEDS = 4000
INTERESTING = sorted(
    {0, 1, 2, 3, 7, 8, 16, 64, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24}
    | {2**bits + more for bits in (31, 32, 40, 61, 62, 63, 64) for more in (-2, -1, 0, 1)}
)


class Failure(Exception):
    """What no file may bring about."""


class Memory:
    """Bytes as a source, which counts what is read of it."""

    path = "fuzzed"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise Failure(f"{length} bytes read at {offset}")
        if offset + length > self.size:
            raise Damaged(f"{self.path} ends before byte {offset + length}, where a part of it should be")
        self.read += length
        # Many small reads of one place are cheap; many large ones are not.
        if self.read > 8 * self.size + 65536:
            raise Failure(f"{self.read} bytes read of a file of {self.size}")
        return self.data[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))


def look(data: bytes) -> str:
    """Reads one file and checks what came of it; the outcome in a few words. Raises Failure, or whatever goes wrong."""
    source = Memory(data)
    begun = time.process_time()
    try:
        form = recognise(source)
        file = form.read(source)
    except CkptError as error:
        _check_message(error)
        outcome = re.sub(r"""0x\w+|b?['"].*|\d+""", "#", error.message)[:120]
    else:
        _check_file(file, source)
        outcome = f"read {file.container} {min(len(file.tensors), 3)} {len(file.notes)}"
        try:
            form.check(source)
        except CkptError as error:
            # What an index says of other files is not true of a file in memory.
            if error.kind != "missing-part":
                raise Failure("what was read fails its check") from error
    if time.process_time() - begun > SECONDS + source.size / 1e6:
        raise Failure(f"it took {time.process_time() - begun:.1f} s")
    return outcome


def _check_message(error: CkptError) -> None:
    if not error.message or "\n" in error.message or len(error.message) > 1500:
        raise Failure(f"the message is no sentence: {error.message[:2000]!a}") from error


def _check_file(file: TensorFile, source: Memory) -> None:
    json.dumps(dict(file.values))
    json.dumps([foreign.name for foreign in file.foreign_globals])
    for tensor_ in file.tensors:
        _check_tensor(tensor_, source)


def _check_tensor(tensor_: TensorInfo, source: Memory) -> None:
    place = tensor_.storage
    for _, piece in tensor_.pieces:
        _check_tensor(piece, source)
    if not isinstance(tensor_.name, str) or len(tensor_.shape) != len(tensor_.stride):
        raise Failure(f"an odd tensor: {tensor_}")
    if place is None or place.file != source.path:
        return
    if place.offset < 0 or place.offset + (place.packed or place.bytes) > source.size:
        raise Failure(f"a storage outside the file: {place}")
    if tensor_.form == "strided" and tensor_.elements:
        last = tensor_.offset + sum((size - 1) * step for size, step in zip(tensor_.shape, tensor_.stride))
        if tensor_.offset < 0 or min(tensor_.stride, default=0) < 0 or (last + 1) * tensor_.itemsize > place.bytes:
            raise Failure(f"a tensor outside its storage: {tensor_}")


# --- seeds


class Seed(NamedTuple):
    """A file, and the parts of it that a mutation can know about: its zip entries, the opcodes of its pickle."""

    data: bytes
    entries: tuple[Entry, ...] = ()
    codes: tuple[bytes, ...] = ()
    tail: bytes = b""


def opcodes(data: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """The pickles at the beginning of the data, opcode by opcode, and what follows them."""
    codes: list[bytes] = []
    at = 0
    while data[at : at + 1] == b"\x80":
        try:
            starts = [place or 0 for _, _, place in pickletools.genops(data[at:])]
        except Exception:
            break
        end = starts[-1] + 1
        codes += [data[at + a : at + b] for a, b in zip(starts, [*starts[1:], end])]
        at += end
    return tuple(codes), data[at:]


def seed(data: bytes) -> Seed:
    if data[:2] != b"PK":
        return Seed(data, (), *opcodes(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = tuple(Entry(info.filename.encode(), archive.read(info)) for info in archive.infolist())
    except Exception:
        return Seed(data)
    pickle = next((entry.data for entry in entries if entry.name.endswith(b"/data.pkl")), b"")
    return Seed(data, entries, *opcodes(pickle))


def real_files() -> Iterator[bytes]:
    """Small files in every format, as the libraries write them."""
    import safetensors.torch
    import torch

    base = torch.arange(24.0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    trees: list[Any] = [
        {"w": base.view(4, 6).t(), "tied": base[3:9], "n": 3, "x": [1.5, None, True, "text", b"bytes", {(1, 2): base}]},
        model.state_dict(), optimizer.state_dict(), model, base.to(torch.float8_e4m3fn), torch.eye(3).to_sparse(),
        {"meta": torch.empty(3, device="meta"), "conj": torch.ones(2, dtype=torch.complex64).conj()},
        {"q": torch.quantize_per_tensor(base, 0.1, 3, torch.qint8), "size": torch.Size([1, 2]), "dtype": torch.float16},
    ]  # fmt: skip
    for tree in trees:
        for protocol, zipped in ((2, True), (4, True), (2, False)):
            stored = io.BytesIO()
            try:
                torch.save(tree, stored, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            except Exception:
                continue  # not every dtype has a legacy form
            yield stored.getvalue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out, its files are not
        script = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), script)
        yield script.getvalue()
    yield safetensors.torch.save({"w": base.view(4, 6), "b": torch.ones(3, dtype=torch.bfloat16), "": base[:1].clone()})
    yield safetensors.torch.save({"w": base}, {"format": "pt", "note": "é"})
    yield from _distributed()


def _distributed() -> Iterator[bytes]:
    """What torch.distributed writes: its index and one file of slices."""
    import tempfile

    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"w": torch.arange(6.0).view(2, 3), "n": {"step": 3}}, checkpoint_id=folder, no_dist=True)
        for path in Path(folder).iterdir():
            yield path.read_bytes()
        # Beyond 256 slots of its memo objects are read in one step.
        save({f"w{n}": torch.zeros(n % 3, 2) for n in range(24)}, checkpoint_id=f"{folder}/many", no_dist=True)
        yield Path(folder, "many/.metadata").read_bytes()


def seeds(corpus: str | None = None) -> list[Seed]:
    """Real files several times over, for what is changed of them reaches furthest; the hostile; a corpus's."""
    real = [seed(data) for data in real_files()]
    found = [seed(case.data) for case in cases() if len(case.data) <= LARGEST_SEED]
    paths = sorted(Path(corpus).rglob("*")) if corpus else []
    more = [seed(path.read_bytes()) for path in paths if path.is_file() and path.stat().st_size <= 1 << 16]
    return real * (1 + len(found) // (2 * len(real))) + found + more


# --- mutations

_REBUILDS = (
    "tensor", "tensor_v2", "tensor_v3", "parameter", "qtensor", "sparse_tensor", "parameter_with_state",
    "meta_tensor_no_storage",
)  # fmt: skip
_WORDS = [
    *(bytes([code]) for code in b"N01()]}t\x85\x86\x87aesuRbQ\x81\x92\x8f\x90\x91\x93\x942.\x88\x89ld"),
    b"h\0", b"h\1", b"q\0", b"q\1", b"K\0", b"K\1", b"U\0", b"C\0", b"I01\n", b"L1L\n", b"F1\n", b"S'a'\n", b"Va\n",
    b"G" + bytes(8), b"\x80\4", b"\x95" + bytes(8), b"\x96" + bytes(8),
    text("storage"), text("0"), text("cpu"), text(""), storage(), tensor(), storage() + b"0",
    *(name("torch", word) for word in ("FloatStorage", "UntypedStorage", "float32", "float8_e8m0fnu",
        "Size", "device")),
    *(name("torch._utils", "_rebuild_" + word) for word in _REBUILDS),
    *(name("collections", word) for word in ("OrderedDict", "Counter")),
    *(name("builtins", word) for word in ("set", "complex", "bytearray")),
    name("_codecs", "encode"), name("argparse", "Namespace"), name("os", "system"),
    name("torch._tensor", "_rebuild_from_type_v2"), name("torch.serialization", "_get_layout"),
]  # fmt: skip
_TOKENS = [
    '"', "{", "}", "[", "]", ",", ":", "-", "0", "1", "8", "64", "e1", ".0", " ", "null", "true", '"a"', "\\u0041",
    "\\ud800", "\\udc00", "\\", '"dtype"', '"U8"', '"F32"', '"F4"', "18446744073709551616", "18446744073709551615",
    "\0", "é", "\ufeff", '"x":[],', '"shape":[0],', '"data_offsets":[0,4],', '"__metadata__":{},', "NaN", "1e999", "-0",
    "\t",
]  # fmt: skip


def _anywhere(data: bytes, chance: random.Random) -> bytes:
    """Bits, bytes, pieces, integers of every width, the end."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = chance.randrange(256)
        elif kind == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 3:
            del changed[at : at + chance.randint(1, 16)]
        elif kind == 4:
            width = chance.choice((1, 2, 4, 8))
            order = chance.choice(("little", "little", "little", "big"))
            value = chance.choice(INTERESTING) * chance.choice((1, 1, -1)) & (1 << 8 * width) - 1
            changed[at : at + width] = value.to_bytes(width, "big" if order == "big" else "little")
        elif kind == 5:
            other = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + chance.randint(1, 64)]
        elif kind == 6:
            length = chance.randint(1, 64)
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        elif kind == 7 and not chance.randrange(4):
            del changed[at:]
    return bytes(changed)


def _recoded(codes: Sequence[bytes], others: Sequence[bytes], chance: random.Random) -> bytes:
    """A pickle with opcodes gone, doubled, exchanged, put in, and operands changed."""
    made = list(codes)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(8)
        if kind == 0:
            del made[at : at + chance.choice((1, 1, 2, 5))]
        elif kind == 1:
            made[at:at] = [chance.choice(_WORDS)]
        elif kind == 2:
            made[at : at + 1] = [chance.choice(_WORDS)]
        elif kind == 3:
            made[at:at] = made[at : at + chance.randint(1, 12)] * chance.choice((1, 1, 2, 30))
        elif kind == 4 and others:
            start = chance.randrange(len(others))
            made[at:at] = others[start : start + chance.randint(1, 20)]
        elif kind == 5:
            places = [index for index, code in enumerate(made) if code[:1] in b"KMJ\x8a"]
            if places:
                made[chance.choice(places)] = number(chance.choice(INTERESTING) * chance.choice((1, 1, 1, -1)))
        elif kind == 6 and at < len(made):
            made[at] = made[at][:1] + _anywhere(made[at][1:], chance)
        elif kind == 7 and len(made) > 1:
            other = chance.randrange(len(made))
            at = min(at, len(made) - 1)
            made[at], made[other] = made[other], made[at]
    return b"".join(made)


def _rezipped(entries: Sequence[Entry], chance: random.Random) -> bytes:
    """The archive with lies in its headers and end records, entries gone, doubled, renamed or packed."""
    made = list(entries)
    ends: dict[str, Any] = {}
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(made)) if made else 0
        kind = chance.randrange(10)
        value = chance.choice(INTERESTING)
        if kind < 2 and made:
            where = chance.choice(("local", "central"))
            lies: dict[str, Any] = {**getattr(made[at], where), chance.choice(field_names(where)): value}
            made[at] = made[at]._replace(local=lies) if where == "local" else made[at]._replace(central=lies)
        elif kind == 2:
            where = chance.choice(("end", "end64", "locator"))
            ends[where] = {**ends.get(where, {}), chance.choice(field_names(where)): value}
        elif kind == 3 and made:
            del made[at]
        elif kind == 4 and made:
            made.insert(chance.randrange(len(made) + 1), made[at])
        elif kind == 5 and made:
            made[at] = made[at]._replace(name=_anywhere(made[at].name, chance)[:65535])
        elif kind == 6 and made:
            made[at] = made[at]._replace(data=_anywhere(made[at].data, chance))
        elif kind == 7 and made:
            made[at] = made[at]._replace(deflated=True)
        elif kind == 8 and made:
            extra = chance.choice((1, 2, 0x4246)).to_bytes(2, "little") + chance.choice((0, 8, 16, 24)).to_bytes(
                2, "little"
            )
            extra += b"".join((chance.choice(INTERESTING) % 2**64).to_bytes(8, "little") for _ in range(3))
            made[at] = made[at]._replace(central={**made[at].central, "extra": extra, "size": 2**32 - 1})
        elif kind == 9:
            ends[chance.choice(("before", "between", "comment", "after"))] = chance.randbytes(chance.randint(1, 40))
    return zip_file([entry for entry in made if entry.like is None or entry.like < len(made)], **ends)


def _reheaded(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header is edited and, mostly, as long as it says."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode("utf-8", "surrogateescape")
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(header) + 1)
        if chance.randrange(2):
            header = header[:at] + chance.choice(_TOKENS) + header[at + chance.choice((0, 0, 1, 3)) :]
        else:
            numbers = [match.span() for match in re.finditer(r"\d+", header)]
            first, last = chance.choice(numbers) if numbers else (at, at)
            header = header[:first] + str(chance.choice(INTERESTING)) + header[last:]
    raw = header.encode("utf-8", "surrogatepass" if chance.randrange(2) else "replace")
    told = len(raw) if chance.randrange(10) else chance.choice(INTERESTING) % 2**64
    return told.to_bytes(8, "little") + raw + data[8 + length :]


def mutated(start: Seed, other: Seed, chance: random.Random) -> bytes:
    """One file made from another; `other` lends pieces."""
    kind = chance.randrange(8)
    if kind == 0:
        return _anywhere(start.data, chance)
    if kind == 1 and len(start.data) < 1 << 16:
        cut, further = chance.randrange(len(start.data) + 1), chance.randrange(len(other.data) + 1)
        return start.data[:cut] + other.data[further:]
    if start.entries:
        if kind < 4:
            return _rezipped(start.entries, chance)
        pickle = _recoded(start.codes, other.codes, chance) if start.codes else b""
        if not pickle or kind == 4:
            pickle = _anywhere(b"".join(start.codes) + start.tail, chance)
        made = [e._replace(data=pickle) if e.name.endswith(b"/data.pkl") else e for e in start.entries]
        return zip_file(made)
    if start.codes:
        made_ = _recoded(start.codes, other.codes, chance)
        if kind < 6:
            return made_ + start.tail
        return zip_file(torch_entries(made_))
    if start.data[8:9] == b"{":
        return _reheaded(start.data, chance)
    return _anywhere(start.data, chance)


# --- the run


class Told(NamedTuple):
    """How many inputs, in how many seconds, the failures, and how often each kind of outcome came."""

    inputs: int
    seconds: float
    failures: list[str]
    outcomes: dict[str, int]


def _hangs(*_: object) -> None:
    raise Failure(f"it hangs: more than {HANGS} s")


def run(start: list[Seed], number_seed: int, count: int | None, seconds: float | None, crashes: str) -> Told:
    """Fuzzes in this process until either is reached."""
    pool = list(start)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    chance = random.Random(number_seed)
    begun = time.monotonic()
    done = 0
    signal.signal(signal.SIGALRM, _hangs)
    while (count is None or done < count) and (seconds is None or time.monotonic() - begun < seconds):
        # Mostly from what was there first: what was found on the way is the shallower, the more of it there is.
        data = mutated(chance.choice(start if done % 4 else pool), chance.choice(start), chance)
        sampled = done % 1000 == 999
        if sampled:
            tracemalloc.start()
        signal.setitimer(signal.ITIMER_REAL, HANGS)
        try:
            outcome = look(data)
            if sampled and tracemalloc.get_traced_memory()[1] > (64 << 20) + 300 * len(data):
                raise Failure(f"{tracemalloc.get_traced_memory()[1]} bytes for a file of {len(data)}")
        except Exception:
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcome = "failed"
            if len(failures) < 100:
                failures.append(_keep(crashes, data, f"seed {number_seed}, input {done}\n{traceback.format_exc()}"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if sampled:
                tracemalloc.stop()
        outcomes[outcome] += 1
        if outcomes[outcome] == 1 and len(pool) < MOST_SEEDS and len(data) <= LARGEST_SEED:
            pool.append(seed(data))
        done += 1
    return Told(done, time.monotonic() - begun, failures, dict(outcomes))


def _keep(crashes: str, data: bytes, why: str) -> str:
    os.makedirs(crashes, exist_ok=True)
    path = os.path.join(crashes, hashlib.sha256(data).hexdigest()[:16])
    Path(path).write_bytes(data)
    Path(path + ".txt").write_text(why, errors="backslashreplace")
    return path


def limit_memory() -> None:
    """No more address space than there is now and a spare: what asks for more fails with a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _job(sink: Any, *arguments: Any) -> None:
    limit_memory()
    sink.put(run(*arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--corpus", help="a directory of further files to begin with")
    parser.add_argument("--crashes", default="fuzz-crashes")
    parser.add_argument("--replay", help="a file to look at once")
    options = parser.parse_args()
    if options.replay:
        print(look(Path(options.replay).read_bytes()))
        return 0
    if options.count is None and options.seconds is None:
        parser.error("say --count or --seconds")
    start = seeds(options.corpus)
    count = None if options.count is None else -(-options.count // options.jobs)
    context = multiprocessing.get_context("fork")
    sink = context.Queue()
    jobs = [
        context.Process(target=_job, args=(sink, start, options.seed + job, count, options.seconds, options.crashes))
        for job in range(options.jobs)
    ]
    for job in jobs:
        job.start()
    told = [sink.get() for _ in jobs]
    for job in jobs:
        job.join()
    total: Counter[str] = Counter()
    for one in told:
        total.update(one.outcomes)
    inputs, longest = sum(one.inputs for one in told), max(one.seconds for one in told)
    for outcome, times in total.most_common(40):
        print(f"{times:>9}  {outcome}")
    failures = [path for one in told for path in one.failures]
    rate = f"{inputs} inputs in {longest:.0f} s, {inputs / longest:.0f} a second"
    print(f"{rate}, {len(total)} outcomes from {len(start)} seeds")
    print(f"{len(failures)} failures", *failures, sep="\n  ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
