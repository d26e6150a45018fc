"""Too little memory and full disks: one sentence of ours, and nothing stays in memory."""

import errno
import gc
import weakref

import numpy
import pytest
import torch
from comfyui_longcat.training.errors import CacheError, DiskError, OutOfMemoryError
from comfyui_longcat.training.resources import WHAT_HELPS, machine_faults_named

TOO_LARGE = 2**46
"""Numbers; no machine has room for them."""


def named(action):
    with machine_faults_named(lambda: "training, step 3/5"):
        action()


def told(text):
    def fail():
        raise RuntimeError(text)

    return fail


@pytest.mark.parametrize(
    "action",
    [
        lambda: torch.empty(TOO_LARGE),
        lambda: numpy.empty(TOO_LARGE),
        lambda: bytearray(2**50),
        told("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        told("CUDA error: out of memory"),
        told("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max allowed: 9 GB)."),
        told("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate"),
        told("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_one_message_with_what_helps(action):
    with pytest.raises(OutOfMemoryError) as caught:
        named(action)
    assert str(caught.value).startswith(f"Not enough memory (training, step 3/5). {WHAT_HELPS}")
    helps = [str(caught.value).index(word) for word in ("int8-quanto", "checkpointing", "blocks_to_swap", "resolution")]
    assert helps == sorted(helps)


def test_torchs_own_error_class_is_known():
    with pytest.raises(OutOfMemoryError):
        named(lambda: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory.")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.png"), "disk is full.*out.png.*No space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out.png"), "disk is full"),
        (OSError("a could not be written: I/O error: No space left on device (os error 28)"), "disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "out.png"), "out.png may not be read or written"),
        (PermissionError(errno.EACCES, "Permission denied", "out.png"), "out.png may not be read or written"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "out.png"), "out.png is not there"),
        (OSError(errno.EIO, "Input/output error", "out.png"), "out.png could not be read or written.*Input/output"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "network.*Connection refused"),
    ],
)
def test_what_a_disk_refuses_is_named_with_a_remedy(error, words):
    def fail():
        raise error

    with pytest.raises(DiskError, match=words) as caught:
        named(fail)
    assert "(training, step 3/5)" in str(caught.value)


def test_other_errors_pass_as_they_are():
    for error in (CacheError("ours"), RuntimeError("a shape is wrong"), KeyError("x")):
        with pytest.raises(type(error)) as caught:
            named(lambda error=error: (_ for _ in ()).throw(error))
        assert caught.value is error


def test_no_tensor_stays_alive_while_the_error_is_shown():
    alive = []

    def inner(outer):
        activations = torch.zeros(3)
        alive.append(weakref.ref(activations))
        raise RuntimeError("CUDA out of memory.") from outer

    def fail():
        weights = torch.zeros(3)
        alive.append(weakref.ref(weights))
        try:
            torch.zeros(2)[weights]
        except IndexError as error:
            inner(error)

    with pytest.raises(OutOfMemoryError) as caught:
        named(fail)
    gc.collect()
    assert len(alive) == 2 and [reference() for reference in alive] == [None, None], caught.value
