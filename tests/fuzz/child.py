"""Readers in a process of their own, so that what crashes or never ends is one more finding."""

from __future__ import annotations

import collections
import importlib
import multiprocessing
import os
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from comfyui_longcat.training.errors import LONGEST_MESSAGE, LongCatError

from .mutations import spoil

LONGEST_SECONDS = 30.0
"""Of processor time, for one input: many times what the slowest takes."""

LONGEST_WAIT = 600.0
"""Seconds of waiting for one input, for what hangs without any work."""

_READERS = "comfyui_longcat.tests.fuzz.readers"
"""Loaded where it is needed only, and once for all processes: it takes longer than hundreds of inputs."""

PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a reader must not do."""

    kind: str
    number: int
    """Of the input."""
    text: str
    """What came out, shortened."""


def fuzz(name: str, count: int, seed: str, folder: Path) -> list[Finding]:
    """What is wrong with the reader `name`, with the sound inputs and with `count` spoilt ones.

    Args:
        folder: empty; keeps the inputs of the findings.
    """
    findings, number = [], 0
    _in_process(_make, name, folder)
    seeds = len(list((folder / "sound").iterdir()))
    # The sound ones have the numbers below 0.
    number = -seeds
    while number < count:
        found, reached, ended = _read_from(number, name, count, seed, folder)
        findings += found
        number = reached + 1
        if ended is not None:
            findings.append(Finding(kind=ended, number=reached, text="the process ended"))
    return findings


def report(findings: list[Finding]) -> str:
    """One line for each kind, the most frequent first."""
    kinds = collections.Counter(finding.kind for finding in findings)
    first = {finding.kind: finding for finding in reversed(findings)}
    return "\n".join(
        f"{count} x {kind}; first: input {first[kind].number}: {first[kind].text}"
        for kind, count in kinds.most_common()
    )


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_READERS])
    return context


def _in_process(target: Callable, *values: Any) -> None:
    process = _context().Process(target=target, args=values)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__}{values} ended with exit code {process.exitcode}; see stderr")


def _reader(name: str) -> Any:
    return importlib.import_module(_READERS).READERS[name]


def _make(name: str, folder: Path) -> None:
    (folder / "sound").mkdir(parents=True)
    _reader(name).make(folder / "sound")


def _read_from(number: int, name: str, count: int, seed: str, folder: Path) -> tuple[list[Finding], int, str | None]:
    """(findings, number of the last input that was begun, why the process ended before all were read)"""
    here, there = _context().Pipe(duplex=False)
    process = _context().Process(target=_read_all, args=(number, name, count, seed, folder, there))
    process.start()
    there.close()
    findings: list[Finding] = []
    try:
        while here.poll(LONGEST_WAIT):
            number, finding = here.recv()
            findings += [finding] if finding else []
            if number == count:
                process.join()
                return findings, number, None
        process.kill()
        reason = f"waits for more than {LONGEST_WAIT:.0f} seconds"
    except EOFError:
        process.join()
        too_long = process.exitcode == -signal.SIGPROF
        reason = f"works for more than {LONGEST_SECONDS:.0f} seconds" if too_long else f"exit code {process.exitcode}"
    return findings, number, reason


def _read_all(first: int, name: str, count: int, seed: str, folder: Path, connection: Any) -> None:
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    reader = _reader(name)
    for number in range(first, count):
        connection.send((number, None))
        # Its default is to end the process, which the system does by itself, whatever runs.
        signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
        connection.send((number, _read(reader, number, f"{seed} {name} {number}", folder)))
    connection.send((count, None))


def _read(reader: Any, number: int, seed: str, folder: Path) -> Finding | None:
    chance = Random(seed)
    sound = sorted((folder / "sound").iterdir())
    source = sound[number] if number < 0 else chance.choice(sound)
    place = folder / f"input{number}"
    # Names of the same files: what is spoilt becomes a file of its own.
    shutil.copytree(source, place / "data", copy_function=os.link)
    names = spoil(chance, place / "data") if number >= 0 else []
    finding = None
    try:
        reader.read(place / "data", source.name, place / "scratch")
    except LongCatError as error:
        kind = "a sound input is refused" if number < 0 else _fault_of(str(error), names, place, reader.names)
        finding = Finding(kind=kind, number=number, text=_short(error)) if kind else None
    except Exception as error:  # noqa: BLE001
        finding = Finding(kind=_kind_of(error), number=number, text=_short(error))
    if finding is None:
        shutil.rmtree(place)
    return finding


def _fault_of(message: str, names: list[str], place: Path, words: tuple[str, ...]) -> str:
    """What is wrong with one of our messages; empty: nothing."""
    if len(message) > LONGEST_MESSAGE:
        return f"a message of more than {LONGEST_MESSAGE} characters"
    known = [*names, *(Path(name).stem for name in names), str(place), *words]
    return "" if any(word in message for word in known) else "a message that names no file"


def _kind_of(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    product = [frame for frame in frames if _is_product(Path(frame.filename))]
    last = (product or frames)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} {last.name}"


def _is_product(path: Path) -> bool:
    return path.is_relative_to(PACKAGE) and not path.is_relative_to(PACKAGE / "tests")


def _short(error: Exception) -> str:
    text = ascii(str(error))
    return f"{type(error).__name__}: {text[:300]}{' ...' if len(text) > 300 else ''}"
