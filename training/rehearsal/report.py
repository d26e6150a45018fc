"""What a rehearsal says in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import LongCatError


@dataclass(frozen=True, kw_only=True)
class RehearsalReport:
    """One line each; a fault may have more."""

    title: str
    folder: Path | None = None
    """The twin's run; None where there is none."""
    works: tuple[str, ...] = ()
    """Stages that were done on the twin."""
    needs: tuple[str, ...] = ()
    """Of the real run."""
    faults: tuple[str, ...] = ()
    """What would fail."""
    surprises: tuple[str, ...] = ()
    """What is allowed but may not be meant."""

    def text(self) -> str:
        """All of it, for people."""
        lines = [self.title, f"Your {_joined(self.works)} work." if self.works else "The twin was not trained."]
        lines += [f"What was made meanwhile: {self.folder}"] if self.folder else []
        lines += _list("At full size this run needs:", self.needs)
        lines += _list("What would fail:", self.faults) if self.faults else ["What would fail: nothing was found."]
        lines += _list("What may surprise:", self.surprises)
        return "\n".join(lines)


class RehearsalError(LongCatError):
    """A rehearsal in which nothing could be trained; the message is its report.

    Args:
        report: a text where it was handed on by a runner that names the node.
    """

    longest = math.inf

    def __init__(self, report: RehearsalReport | str) -> None:
        self.report = report if isinstance(report, RehearsalReport) else None
        super().__init__(report if self.report is None else report.text())


def _joined(words: tuple[str, ...]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _list(headline: str, lines: tuple[str, ...]) -> list[str]:
    return [headline, *(f"- {line}" for line in lines)] if lines else []
