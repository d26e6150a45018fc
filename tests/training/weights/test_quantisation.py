"""Quantised precisions: what is quantised, how exact it is, that gradients survive, and what is refused."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from comfyui_longcat.tests.twins.image_checkpoint import build_transformer
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.lora.inject import inject_lora
from comfyui_longcat.training.settings.model import QUANTISED_PRECISIONS
from comfyui_longcat.training.weights.precisions import ensure_available, must_compile
from comfyui_longcat.training.weights.quantisation import quantise
from comfyui_longcat.training.weights.streaming import weight_bytes

# Twice the figures of the libraries tried out on a model of this width: quanto's as the relative error to float32,
# which includes what bf16 itself rounds, torchao's to bf16.
LARGEST_ERROR = {"int8-quanto": 0.013, "int4-quanto": 0.0152, "int8-torchao": 0.0054, "fp8-torchao": 0.009}
SHARE_OF_BF16 = {"int8-quanto": 0.55, "int4-quanto": 0.31, "int8-torchao": 0.55, "fp8-torchao": 0.55}

HEADS_OF_128 = {"attention_head_dim": 128, "num_attention_heads": 4, "axes_dims_rope": [16, 56, 56]}
"""The released model's head size; 64-wide layers, as the twin's, lose more in 8 and 4 bits."""


def skip_without_compiler(precision):
    if precision == "int4-quanto" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        pytest.skip("int4-quanto needs a C++ compiler")


@pytest.fixture
def transformer():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(0)
        return build_transformer().to(torch.bfloat16).eval()


def build_wide():
    from diffusers import LongCatImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return LongCatImageTransformer2DModel(
            num_layers=1, num_single_layers=2, joint_attention_dim=64, pooled_projection_dim=64, **HEADS_OF_128
        ).eval()


def forward(transformer):
    generator = torch.Generator().manual_seed(1)
    dtype = transformer.x_embedder.bias.dtype
    ids = torch.zeros(20, 3)
    ids[:, 2] = torch.arange(20)
    return transformer(
        hidden_states=torch.randn(1, 12, 64, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(1, 8, 64, generator=generator).to(dtype),
        timestep=torch.tensor([0.5]),
        img_ids=ids[8:],
        txt_ids=ids[:8],
        return_dict=False,
    )[0].float()


def quantised_names(model):
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    found = {name for name, module in linears.items() if is_traceable_wrapper_subclass(module.weight)}
    return found, set(linears) - found


@pytest.mark.parametrize("precision", QUANTISED_PRECISIONS)
def test_linears_of_the_blocks_are_quantised_and_nothing_is_trainable(transformer, precision):
    skip_without_compiler(precision)
    quantise(transformer, precision)
    quantised, whole = quantised_names(transformer)
    assert {name.split(".")[0] for name in whole} == {
        "proj_out", "x_embedder", "context_embedder", "norm_out", "time_embed"
    }  # fmt: skip
    assert "single_transformer_blocks.0.proj_out" in quantised
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_block_by_block_is_the_same_as_at_once(transformer):
    import copy

    parts = copy.deepcopy(transformer)
    quantise(transformer, "int8-quanto")
    for name in ("transformer_blocks", "single_transformer_blocks"):
        for number, block in enumerate(getattr(parts, name)):
            quantise(block, "int8-quanto", f"{name}.{number}")
    # What is quantised already stays as it is.
    quantise(parts, "int8-quanto")
    assert quantised_names(parts) == quantised_names(transformer)
    with torch.no_grad():
        assert torch.equal(forward(parts), forward(transformer))


@pytest.mark.parametrize("precision", QUANTISED_PRECISIONS)
def test_output_error_size_and_gradients(precision):
    skip_without_compiler(precision)
    model = build_wide()
    with torch.no_grad():
        exact = forward(model)
        model = model.to(torch.bfloat16)
        rounded = forward(model)
        full_size = weight_bytes(model)
    reference = gradients(model)
    model = build_wide().to(torch.bfloat16)
    quantise(model, precision)
    share = weight_bytes(model) / full_size
    with torch.no_grad():
        output = forward(model)
    to_fp32, to_bf16 = ((output - each).norm() / each.norm() for each in (exact, rounded))
    error = to_fp32 if precision.endswith("quanto") else to_bf16
    found = gradients(model)
    cosine = min(torch.cosine_similarity(found[name].flatten(), reference[name].flatten(), dim=0) for name in found)
    print(
        f"{precision}: {share:.2f} of bf16's size, relative error {to_fp32:.4f} to fp32, {to_bf16:.4f} to"
        f" bf16 (at most {LARGEST_ERROR[precision]}), gradient cosine {cosine:.4f}"
    )
    assert 0 < error < LARGEST_ERROR[precision]
    assert share < SHARE_OF_BF16[precision]
    # Activation-quantised kinds lose the gradients of the blocks before: then some of these are zero.
    assert cosine > 0.98


def gradients(model):
    parameters = inject_lora(model, ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"], 4, 0, 0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    forward(model).square().mean().backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


def test_unknown_precision_is_refused(transformer):
    with pytest.raises(ConfigError, match="'int2-quanto' is no quantised one; known: int8-quanto, int4-quanto"):
        quantise(transformer, "int2-quanto")


@pytest.mark.parametrize(
    ("precision", "package"),
    [("int8-quanto", "optimum-quanto"), ("int4-quanto", "optimum-quanto"), ("fp8-torchao", "torchao")],
)
def test_missing_package_is_named_before_anything_loads(precision, package):
    code = (
        "import sys\n"
        "from comfyui_longcat.training.weights.precisions import ensure_available\n"
        "sys.path[:] = []\n"
        "sys.path_importer_cache.clear()\n"
        "ensure_available('bf16')\n"
        "try:\n"
        f"    ensure_available('{precision}')\n"
        "except ValueError as error:\n"
        "    sys.stdout.write(f'{type(error).__name__}: {error} torch={\"torch\" in sys.modules}')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("ConfigError")
    assert f"pip install {package}" in result.stdout
    assert "torch=False" in result.stdout


def test_int4_without_tools_to_compile_is_refused_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler .* cannot be found on the PATH.* or choose int8-quanto"):
        ensure_available("int4-quanto")
    ensure_available("int8-quanto")


def test_the_path_is_as_before_after_int4(transformer):
    skip_without_compiler("int4-quanto")
    before = os.environ["PATH"]
    quantise(transformer, "int4-quanto")
    assert os.environ["PATH"] == before
    assert not must_compile("int4-quanto", "cpu")
    assert not must_compile("int8-quanto", "cpu")


def test_available_precisions_pass():
    for precision in ("bf16", "fp32", "no_change", "int8-quanto", "fp8-torchao", "int8-torchao"):
        assert ensure_available(precision) is None
