"""`longcat demo`: teaches two tiny models what they do not know, and shows unseen pictures and clips before and after.

It runs the shipped training workflows and sampling workflows through the nodes, as a user's graphs would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from .demo_clips import MovesUp
from .demo_edit import BorderEdit
from .demo_lesson import Lesson, teach
from .host import TerminalHost, say

LESSONS: tuple[Lesson, ...] = (BorderEdit(), MovesUp())


def run_demo(host: TerminalHost, lessons: Sequence[Lesson] = LESSONS) -> list[Path]:
    """Gives each lesson and says what was measured; returns the files to look at. A second call reuses finished runs.

    Raises:
        StoppedByUserError: stopped; a second call goes on.
        LongCatError, OSError: a stage refused, or the disk is full.
    """
    files, verdicts = [], []
    with one_thread():
        for lesson in lessons:
            taught = teach(lesson, host)
            files += taught.files
            verdicts.append(lesson.verdict(taught))
    for verdict in verdicts:
        say(verdict)
    return files


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and on a busy machine two wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
