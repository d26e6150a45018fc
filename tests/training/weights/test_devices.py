"""The dtype that each device computes in, with its reason. Cards that are not here are imitated by what torch says."""

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.settings.model import BASE_PRECISIONS
from comfyui_longcat.training.weights.devices import choose_dtype

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda:0", "mps"))


def make_card(monkeypatch, capability):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card 2080")


def make_mac(monkeypatch, newer):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: newer)


@pytest.mark.parametrize("precision", BASE_PRECISIONS)
def test_cpu_computes_every_precision(precision):
    dtype, reason = choose_dtype(CPU, precision)
    assert dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
    assert precision in reason


def test_a_card_with_bfloat16_gets_it(monkeypatch):
    make_card(monkeypatch, (8, 6))
    assert choose_dtype(CUDA, "int8-quanto")[0] == torch.bfloat16
    assert choose_dtype(CUDA, "fp32")[0] == torch.float32


def test_an_old_card_computes_in_float32_and_says_why(monkeypatch):
    make_card(monkeypatch, (7, 5))
    dtype, reason = choose_dtype(CUDA, "int8-quanto")
    assert dtype == torch.float32
    assert "Old Card 2080 has no bfloat16" in reason and "int8-quanto computes in float32" in reason


def test_int4_on_cuda_without_the_toolkit_is_refused(monkeypatch):
    make_card(monkeypatch, (8, 6))
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(ConfigError, match=r"int4-quanto does not work on cuda: .*nvcc.* Choose int8-quanto"):
        choose_dtype(CUDA, "int4-quanto")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/cuda")
    assert choose_dtype(CUDA, "int4-quanto")[0] == torch.bfloat16


@pytest.mark.parametrize(("newer", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_apple_computes_in_what_its_system_has(monkeypatch, newer, dtype):
    make_mac(monkeypatch, newer)
    found, reason = choose_dtype(MPS, "bf16")
    assert found == dtype
    assert newer or "macOS 14" in reason


@pytest.mark.parametrize(("precision", "reason"), [("fp8-torchao", "no float8"), ("int4-quanto", "Xcode")])
def test_apple_refuses_what_it_cannot_do(monkeypatch, precision, reason):
    make_mac(monkeypatch, True)
    with pytest.raises(ConfigError, match=rf"{precision} does not work on mps: .*{reason}"):
        choose_dtype(MPS, precision)
