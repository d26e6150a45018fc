"""Joining what several datasets give."""

from __future__ import annotations

from collections.abc import Sequence

from .records import TrainingSet


def join_sets(sets: Sequence[TrainingSet]) -> TrainingSet:
    """All records of `sets`, in their order."""
    return TrainingSet(
        sources=tuple(source for each in sets for source in each.sources),
        records=tuple(record for each in sets for record in each.records),
        warnings=tuple(warning for each in sets for warning in each.warnings),
    )
