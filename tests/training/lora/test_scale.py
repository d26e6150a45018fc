"""Where the scale of a foreign LoRA stands: patterns are names, never run as regular expressions."""

import json
import random
import re

import pytest
import torch
from comfyui_longcat.training.errors import LoraFileError
from comfyui_longcat.training.lora.file import read_lora
from comfyui_longcat.training.lora.scale import LONGEST_PATTERN, MOST_PATTERNS, find_settings
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

MODULES = [
    *(f"transformer_blocks.{number}.attn.to_{part}" for number in (0, 10) for part in "qkv"),
    *(f"single_transformer_blocks.{number}.proj_out" for number in (0, 10)),
    "proj_out",
]
HOSTILE = (
    "(a+)+$",
    "(.*a){40}",
    "(transformer_blocks|(\\w+\\.?)+)+x",
    "([a-z_.0-9]+)*!",
    ".*to_q",
    "to_(q|k)",
    "[q",
    "to_q\n",
    "^",
    "",
    "to_q$$",
    "\\w",
    "x" * (LONGEST_PATTERN + 1),
)
NAME = f"{MODULES[0]}.lora_A.weight"


def settings_of(tmp_path, **patterns):
    text = json.dumps({"r": 4, "lora_alpha": 4} | patterns)
    return find_settings(tmp_path / "a.safetensors", [NAME], {"lora_adapter_metadata": text})


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", HOSTILE)
def test_regular_expressions_are_refused_unrun(tmp_path, pattern, key):
    with pytest.raises(LoraFileError, match=f"a.safetensors has .* in {key}, which is no module's name") as raised:
        settings_of(tmp_path, **{key: {MODULES[0]: 4, pattern: 4}})
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("where", ["metadata", "adapter_config.json"])
def test_a_file_with_a_hostile_pattern_is_refused_at_once(tmp_path, where):
    """Run as an expression, this one takes 2 ** 40 steps for the module's name."""
    prefix = "" if where == "metadata" else "base_model.model."
    tensors = {
        f"{prefix}{MODULES[0]}.lora_A.weight": torch.ones(4, 8),
        f"{prefix}{MODULES[0]}.lora_B.weight": torch.ones(8, 4),
    }
    config = json.dumps({"r": 4, "lora_alpha": 4, "rank_pattern": {"(([a-z_.0]+)+)+X": 4}})
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": config} if where == "metadata" else None)
    if where != "metadata":
        (tmp_path / where).write_text(config, encoding="utf-8")
    with pytest.raises(LoraFileError, match="Other regular expressions than names are not run"):
        read_lora(tmp_path / "a.safetensors")


def test_too_many_patterns_are_refused(tmp_path):
    with pytest.raises(LoraFileError, match=rf"has {MOST_PATTERNS + 1} entries in alpha_pattern"):
        settings_of(tmp_path, alpha_pattern={f"blocks.{number}.x": 1 for number in range(MOST_PATTERNS + 1)})


@pytest.mark.parametrize("seed", range(30))
def test_names_mean_what_they_mean_to_peft(tmp_path, seed):
    """Whole or the end of a name, plain, escaped or anchored; of several that fit the first counts."""
    draw = random.Random(seed)
    pattern = {}
    for _ in range(6):
        parts = draw.choice(MODULES).split(".")
        end = ".".join(parts[draw.randrange(len(parts)) :])
        spelled = draw.choice([end, re.escape(end), f"^{re.escape(end)}", f"{end}$"])
        pattern[spelled] = draw.randrange(1, 100)
    settings = settings_of(tmp_path, alpha_pattern=pattern)
    for module in MODULES:
        wanted = pattern.get(get_pattern_key(list(pattern), module), 4)
        assert settings.scale(module, 4) == wanted / 4, (module, pattern)


def test_wrappers_in_patterns_are_those_of_the_names(tmp_path):
    pattern = {"^transformer\\._orig_mod\\.transformer_blocks\\.0\\.attn\\.to_q": 8}
    settings = settings_of(tmp_path, alpha_pattern=pattern)
    assert settings.scale("base_model.model.transformer._orig_mod.transformer_blocks.0.attn.to_q", 4) == 2
    assert settings.scale("transformer_blocks.0.attn.to_q", 4) == 2
    assert settings.scale("transformer_blocks.0.attn.to_k", 4) == 1


def test_the_config_beside_pefts_file_counts_without_pefts_prefix(tmp_path):
    tensors = {f"{MODULES[0]}.lora_A.weight": torch.ones(4, 8), f"{MODULES[0]}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}), encoding="utf-8")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert torch.equal(read_lora(path)[MODULES[0]].b, torch.full((8, 4), 0.5))
