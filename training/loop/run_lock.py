"""Keeping a run folder to one process: a lock of the operating system, which ends with its process however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems (some network shares) that know no locks."""


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds `path` (created if missing) for as long as the block runs.

    Raises:
        BlockingIOError: another process, or another thread of this one, holds it.
    """
    with path.open("a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            logger.warning("%s cannot be locked (%s); do not start this run twice at a time.", path, error)
        yield


def _lock(file: Any) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked by another process") from error
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
