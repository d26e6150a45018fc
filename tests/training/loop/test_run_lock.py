"""The lock of a run folder, against real processes."""

import errno
import subprocess
import sys
import threading

import pytest
from comfyui_longcat.training.loop.run_lock import exclusive

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import sys
from pathlib import Path
from comfyui_longcat.training.loop.run_lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "run.lock"


@pytest.fixture
def holder(lock):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def _take(lock):
    with exclusive(lock):
        pass


def test_another_process_is_refused_until_the_holder_is_killed(lock, holder):
    with pytest.raises(BlockingIOError):
        _take(lock)
    holder.kill()
    holder.wait()
    _take(lock)


def test_another_thread_is_refused(lock):
    with exclusive(lock):
        refused = []
        thread = threading.Thread(target=lambda: refused.append(pytest.raises(BlockingIOError, _take, lock)))
        thread.start()
        thread.join()
        assert len(refused) == 1
        with pytest.raises(BlockingIOError):
            _take(lock)
    _take(lock)


@pytest.mark.parametrize("content", [b"", b"12345\nsome-host\n"])
def test_a_file_that_was_left_behind_does_not_block(lock, content):
    lock.write_bytes(content)
    with exclusive(lock), pytest.raises(BlockingIOError):
        _take(lock)
    _take(lock)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(lock, code, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", _refusing(code))
    for _ in range(2):
        with exclusive(lock):
            pass
    assert caplog.text.count("do not start this run twice") == 2 and str(lock) in caplog.text


def test_other_faults_of_the_disk_come_through(lock, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", _refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        _take(lock)


def _refusing(code):
    def flock(*_):
        raise OSError(code, errno.errorcode[code] if code != errno.EIO else "Input/output error")

    return flock
