"""What the machine cannot give, memory and room on a disk, in our words: the same ones in every host."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Callable, Iterator

from .errors import DiskError, LongCatError, OutOfMemoryError

WHAT_HELPS = (
    "What helps, in this order: base_model_precision int8-quanto, gradient_checkpointing on, train_batch_size 1,"
    " blocks_to_swap (10, then 30), a lower resolution (of the datasets and of validation), a lower lora_rank."
)

NO_MEMORY = (
    "out of memory",  # CUDA, ROCm, XPU, MPS
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "invalid buffer size",  # MPS, of one tensor
)
"""In the texts of the RuntimeErrors that mean it; lower case."""

NO_ROOM = ("no space left", "os error 28", "disk quota exceeded", "os error 122", "os error 112")
"""In the texts of errors of libraries that keep no number; lower case."""

PAGING_FILE_TOO_SMALL = 1455
"""Windows' number of the error of a file that cannot be mapped into memory."""

LONGEST_REASON = 300
"""Characters of the library's own text that are shown."""


@contextlib.contextmanager
def machine_faults_named(phase: Callable[[], str]) -> Iterator[None]:
    """Around work: what memory and disks refuse leaves it as an error of ours.

    No error that leaves it keeps tensors alive: the frames of its traceback are emptied.

    Args:
        phase: what goes on, for the message; asked when it failed.

    Raises:
        OutOfMemoryError, DiskError: instead of torch's, numpy's and Python's own.
    """
    try:
        yield
    except Exception as error:
        release_frames(error)
        named = _in_our_words(error, phase)
        if named is None:
            raise
        raise named from error


def release_frames(error: BaseException) -> None:
    """Empties the frames of the tracebacks of `error` and of those it came from; they would keep models and
    activations in memory for as long as it is shown."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += (each.__cause__, each.__context__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that the machine lacks memory, in the words of any library: nothing is damaged then."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) == PAGING_FILE_TOO_SMALL
    text = str(error).lower()
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY)


def _in_our_words(error: Exception, phase: Callable[[], str]) -> LongCatError | None:
    if isinstance(error, LongCatError):
        return None
    if is_out_of_memory(error):
        return OutOfMemoryError(f"Not enough memory ({phase()}). {WHAT_HELPS}{_reason(error)}")
    if isinstance(error, OSError):
        return DiskError(_disk_message(error, phase()))
    return None


def _disk_message(error: OSError, phase: str) -> str:
    place = str(error.filename or "A file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(error).lower() for sign in NO_ROOM):
        return (
            f"The disk is full, or your share of it ({phase}): {place} could not be written. Make room, then start it"
            f" again; what is finished is kept.{_reason(error)}"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{place} may not be read or written ({phase}). Give the program the right to do so, or choose another"
            f" folder; what is finished is kept.{_reason(error)}"
        )
    if error.errno == errno.ENOENT:
        return f"{place} is not there ({phase}). Put it back, or correct its path, then start it again."
    if error.filename:
        return f"{place} could not be read or written ({phase}). Look at the disk, then start it again.{_reason(error)}"
    return f"The system refused something ({phase}). Look at disk and network, then start it again.{_reason(error)}"


def _reason(error: Exception) -> str:
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return f" ({text[:LONGEST_REASON]})" if text else ""
