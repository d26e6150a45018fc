"""int8-quanto: what is quantised, what stays whole, and what is refused."""

import subprocess
import sys

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.quantisation import ensure_available, quantise
from comfyui_longcat.training.tiny.image_checkpoint import build_transformer


@pytest.fixture
def transformer():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(0)
        return build_transformer().to(torch.bfloat16).eval()


def forward(transformer):
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(20, 3)
    ids[:, 2] = torch.arange(20)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 12, 64, generator=generator).to(torch.bfloat16),
            encoder_hidden_states=torch.randn(1, 8, 64, generator=generator).to(torch.bfloat16),
            timestep=torch.tensor([0.5]),
            img_ids=ids[8:],
            txt_ids=ids[:8],
            return_dict=False,
        )[0].float()


def test_linears_of_the_blocks_are_quantised_and_nothing_is_trainable(transformer):
    from optimum.quanto import QLinear

    before = forward(transformer)
    quantise(transformer, "int8-quanto")
    quantised = {name for name, module in transformer.named_modules() if isinstance(module, QLinear)}
    linears = {name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    whole = linears - quantised
    assert {name.split(".")[0] for name in whole} == {
        "proj_out", "x_embedder", "context_embedder", "norm_out", "time_embed"
    }  # fmt: skip
    assert "single_transformer_blocks.0.proj_out" in quantised
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
    error = (forward(transformer) - before).norm() / before.norm()
    print(f"relative error of int8: {error:.4f}")
    assert 0 < error < 0.03


def test_unknown_precision_is_refused(transformer):
    with pytest.raises(ConfigError, match="int4"):
        quantise(transformer, "int4-quanto")


def test_missing_package_is_named_before_anything_loads():
    code = (
        "import sys\n"
        "from comfyui_longcat.training.quantisation import ensure_available\n"
        "sys.path[:] = []\n"
        "sys.path_importer_cache.clear()\n"
        "ensure_available('bf16')\n"
        "try:\n"
        "    ensure_available('int8-quanto')\n"
        "except ValueError as error:\n"
        "    sys.stdout.write(f'{type(error).__name__}: {error} torch={\"torch\" in sys.modules}')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("ConfigError")
    assert "pip install optimum-quanto" in result.stdout
    assert "torch=False" in result.stdout


def test_available_precisions_pass():
    for precision in ("bf16", "fp32", "no_change", "int8-quanto"):
        ensure_available(precision)
