"""Every error that a user can meet. Messages give the value, what is allowed, and what to do."""

import re

LONGEST_MESSAGE = 3_000
"""Characters; what a user brings may be of any length, and is quoted."""

LONGEST_WORD = 400
"""Characters without a blank between them."""

_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


class LongCatError(Exception):
    """Base of all errors raised on purpose by this pack."""

    longest: float = LONGEST_MESSAGE

    def __init__(self, message: str = "") -> None:
        super().__init__(_without_middle(_shortened(message), self.longest))


class ConfigError(LongCatError, ValueError):
    """A setting is out of range, or two settings exclude each other; `faults` has a sentence for each."""

    def __init__(self, *faults: str) -> None:
        faults = tuple(map(_shortened, faults))
        listed = f"{len(faults)} faults:" + "".join(f"\n- {fault}" for fault in faults)
        super().__init__(faults[0] if len(faults) == 1 else listed)
        self.faults = faults


class DataError(LongCatError, ValueError):
    """A dataset folder, a picture, a caption or a pairing is faulty."""


class PathError(LongCatError, ValueError):
    """A path lies outside the allowed roots, or does not exist."""


class ModelError(LongCatError):
    """A model folder is missing, incomplete, or of another family."""


class CacheError(LongCatError):
    """A cache file is missing, truncated, or not what its key promises."""


class CheckpointError(LongCatError):
    """A checkpoint or run folder cannot be used."""


class LoraFileError(LongCatError):
    """A LoRA file cannot be read, or matches no module of the model."""


class NonFiniteLossError(LongCatError):
    """The loss became NaN or infinite; raised before the optimiser step, the last checkpoint is intact."""


class PreviewError(LongCatError):
    """A validation picture could not be made; what had been trained is saved."""


class NonFiniteError(LongCatError):
    """NaN or infinity in a trained adapter, or in what was sampled; nothing of it was written or shown."""


class OutOfMemoryError(LongCatError):
    """The device or the machine has too little memory."""


class DiskError(LongCatError):
    """A disk is full, or a place cannot be read or written."""


class StoppedByUserError(LongCatError):
    """The user asked to stop; raised after everything has been saved."""


def _shortened(text: str) -> str:
    return _WORD.sub(lambda match: _without_middle(match[0], LONGEST_WORD), text)


def _without_middle(text: str, longest: float) -> str:
    """The end of a message says what to do."""
    if len(text) <= longest:
        return text
    half = int(longest) // 2 - len(" ... ")
    return f"{text[:half]} ... {text[-half:]}"
