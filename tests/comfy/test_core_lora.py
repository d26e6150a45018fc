"""A LoRA that we save, in core's own LoRA loader on core's own LongCat-Image model; core runs with core's Python."""

import json
import subprocess

import pytest
import torch
from comfyui_longcat.training.lora.file import apply_lora, save_lora
from comfyui_longcat.training.lora.inject import TRAINED_ADAPTER, inject_lora, lora_layers
from comfyui_longcat.training.models.longcat_image import LongCatImageFamily
from comfyui_longcat.training.models.single_file import export_transformer
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy

STRENGTH = 0.7

CORE = """
import json, logging, sys
sys.path.insert(0, ".")
from comfy.cli_args import args
args.cpu = True
import torch
torch.set_num_threads(2)
from safetensors.torch import load_file, save_file
folder, strength = sys.argv[1], float(sys.argv[2])
said = []
class Collector(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
import folder_paths
folder_paths.add_model_folder_path("loras", folder, is_default=True)
import comfy.sd, nodes
logging.getLogger().addHandler(Collector())
logging.getLogger().setLevel(logging.INFO)
base = comfy.sd.load_diffusion_model_state_dict(load_file(folder + "/model.safetensors"), {"dtype": torch.float32})
inputs = load_file(folder + "/inputs.safetensors")
length = float(inputs["prompt_embeds"].shape[1])
rope = {"shift_t": 1.0, "shift_y": length, "shift_x": length}

def predict(patcher):
    patcher.patch_model()
    with torch.no_grad():
        velocity = patcher.model.diffusion_model(
            inputs["latents"], inputs["sigmas"], inputs["prompt_embeds"], ref_latents=[inputs["reference"]],
            ref_latents_method="index", transformer_options={"rope_options": rope},
        ).contiguous()
    patcher.unpatch_model()
    return velocity

outputs, patches = {"base": predict(base)}, {}
for name in ("simpletuner", "official"):
    patched = nodes.LoraLoaderModelOnly().load_lora_model_only(base, name + ".safetensors", strength)[0]
    outputs[name] = predict(patched)
    patches[name] = sum(len(entries) for entries in patched.patches.values())
save_file(outputs, folder + "/core.safetensors")
unmatched = [text for text in said if "lora key not loaded" in text or "NOT LOADED" in text]
print(json.dumps({"model": type(base.model).__name__, "unmatched": unmatched, "patches": patches}))
"""

MODULES = {"simpletuner": 2 * 4 + 3 * 3, "official": 2 * 12 + 3 * 3}
"""Adapters in 2 double and 3 single blocks: single blocks have q, k, v only (longcat-image.md, section 6)."""


def twin():
    """The twin that core's detection accepts: joint width 3584, heads of 128 (longcat-image.md, section 9)."""
    from diffusers import LongCatImageTransformer2DModel

    model = LongCatImageTransformer2DModel(num_layers=2, num_single_layers=3, num_attention_heads=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm_" in name and weight.ndim == 1 else 0.0, 0.05, generator=generator)
    return model


def write_lora(path, preset: str) -> None:
    """An adapter whose scale (alpha / rank = 2) has to be baked in, with the trainer's own functions."""
    model = twin()
    inject_lora(model, LongCatImageFamily().lora_targets(preset), rank=4, alpha=8.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B[TRAINED_ADAPTER].weight.normal_(0, 0.05, generator=generator)
    save_lora(path, model, {})


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def our_velocity(inputs: dict, lora=None) -> torch.Tensor:
    model, family = twin(), LongCatImageFamily()
    if lora is not None:
        apply_lora(model, lora, STRENGTH, "lora_0")
    with torch.no_grad():
        prepared = family.prepare_inputs(inputs["latents"].shape, inputs["prompt_embeds"], [inputs["reference"]])
        return family.predict(model, inputs["latents"], inputs["sigmas"], prepared)


def test_core_loads_every_key_and_computes_what_we_do(comfy, tmp_path):
    generator = torch.Generator().manual_seed(3)
    inputs = {
        "latents": torch.randn(1, 16, 8, 12, generator=generator),
        "reference": torch.randn(1, 16, 8, 12, generator=generator),
        "prompt_embeds": torch.randn(1, 20, 3584, generator=generator),
        "sigmas": torch.tensor([0.6]),
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    export_transformer(twin(), tmp_path / "model.safetensors")
    for preset in MODULES:
        write_lora(tmp_path / f"{preset}.safetensors", preset)

    command = [comfy.python, "-c", CORE, str(tmp_path), str(STRENGTH)]
    done = subprocess.run(command, cwd=comfy.path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"model": "LongCatImage", "unmatched": [], "patches": MODULES}

    core = load_file(tmp_path / "core.safetensors")
    base = our_velocity(inputs)
    print(f"base: ours against core's, relative difference {relative(base, core['base']):.1e}")
    assert relative(base, core["base"]) < 1e-4
    for preset in MODULES:
        ours = our_velocity(inputs, tmp_path / f"{preset}.safetensors")
        effect, difference = relative(ours, base), relative(ours, core[preset])
        print(f"{preset}: effect of the LoRA {effect:.1e}, ours against core's {difference:.1e}")
        assert effect > 0.01, "the LoRA must act for the comparison to mean anything"
        assert difference < 1e-4
