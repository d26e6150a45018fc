"""Keeping a run folder to one process: a lock of the operating system, which ends with its process however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems (some network shares) that know no locks."""


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds `path` (created if missing) for as long as the block runs. The file itself says nothing: it may stay.

    Raises:
        BlockingIOError: another process, or another thread of this one, holds it.
    """
    # A soft lock is a file that outlives a killed process and would block the run for good.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path)) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s); do not start this run twice at a time.", path, error)
    try:
        yield
    finally:
        lock.release()
