"""LoRAs that we save or read, in core's own LoRA loader on core's own LongCat-Image model, in core's Python."""

import json
import subprocess

import pytest
import torch
from comfyui_longcat.training.lora.convert import convert_lora
from comfyui_longcat.training.lora.file import apply_lora, read_lora, save_lora
from comfyui_longcat.training.lora.inject import TRAINED_ADAPTER, inject_lora, lora_layers
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.weights.single_file import export_transformer
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

outputs, patches, unmatched = {"base": predict(base)}, {}, {}
for name in sys.argv[3:]:
    said.clear()
    patched = nodes.LoraLoaderModelOnly().load_lora_model_only(base, name + ".safetensors", strength)[0]
    outputs[name] = predict(patched)
    patches[name] = sum(len(entries) for entries in patched.patches.values())
    unmatched[name] = sum("lora key not loaded" in text or "NOT LOADED" in text for text in said)
save_file(outputs, folder + "/core.safetensors")
print(json.dumps({"model": type(base.model).__name__, "unmatched": unmatched, "patches": patches}))
"""

MODULES = {"simpletuner": 2 * 4 + 3 * 3, "official": 2 * 12 + 3 * 3}
"""Adapters in 2 double and 3 single blocks: single blocks have q, k, v only (longcat-image.md, section 6)."""

FUSED = {"native": 2 * 8 + 3, "kohya": 2 * 8 + 3}
"""Of the official targets: in a double block 2 of query, key and value, 2 of projections, 4 of feed-forwards."""

DOTTED, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
IN_THE_WILD = {
    "bare": (lambda name: name, DOTTED),
    "onetrainer": (lambda name: "lora_transformer_" + name.replace(".", "_"), KOHYA),
    "lycoris": (lambda name: "lycoris_" + name.replace(".", "_"), KOHYA),
    "comfyui_format": (lambda name: f"diffusion_model.{name}", DOTTED),
}
"""Layouts of others, with `.alpha`; core loads all but the last (longcat-image.md, section 7)."""


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


def write_layouts(folder) -> None:
    """The official preset in our converted layouts and in those in the wild, there with an alpha of half the rank."""
    for layout in FUSED:
        convert_lora(folder / "official.safetensors", layout, folder / layout)
    for layout, (spell, ends) in IN_THE_WILD.items():
        tensors = {}
        for name, pair in read_lora(folder / "official.safetensors").items():
            key = spell(name)
            tensors |= {f"{key}.{ends[0]}": pair.a, f"{key}.{ends[1]}": 2 * pair.b, f"{key}.alpha": torch.tensor(2.0)}
        save_file(tensors, folder / f"{layout}.safetensors")


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def our_velocity(inputs: dict, lora=None) -> torch.Tensor:
    model, family = twin(), LongCatImageFamily()
    if lora is not None:
        apply_lora(model, lora, STRENGTH, "lora_0")
    with torch.no_grad():
        prepared = family.prepare_inputs(inputs["latents"].shape, inputs["prompt_embeds"], [inputs["reference"]])
        return family.predict(model, inputs["latents"], inputs["sigmas"], prepared)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "latents": torch.randn(1, 16, 8, 12, generator=generator),
        "reference": torch.randn(1, 16, 8, 12, generator=generator),
        "prompt_embeds": torch.randn(1, 20, 3584, generator=generator),
        "sigmas": torch.tensor([0.6]),
    }


@pytest.fixture(scope="module")
def folder(comfy, inputs, tmp_path_factory):
    """The LoRAs, what core said (told.json) and what it computed (core.safetensors), all in one start of core."""
    folder = tmp_path_factory.mktemp("core_lora")
    save_file(inputs, folder / "inputs.safetensors")
    export_transformer(twin(), folder / "model.safetensors")
    for preset in MODULES:
        write_lora(folder / f"{preset}.safetensors", preset)
    write_layouts(folder)

    command = [comfy.python, "-c", CORE, str(folder), str(STRENGTH), *MODULES, *FUSED, *IN_THE_WILD]
    done = subprocess.run(command, cwd=comfy.path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "told.json").write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    return folder


def test_core_loads_every_key_of_the_layouts_it_knows(folder):
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    wild = {layout: MODULES["official"] for layout in IN_THE_WILD}
    assert told == {
        "model": "LongCatImage",
        "unmatched": dict.fromkeys(MODULES | FUSED | wild, 0) | {"comfyui_format": 3 * MODULES["official"]},
        "patches": MODULES | FUSED | wild | {"comfyui_format": 0},
    }


def test_core_computes_what_we_do(folder, inputs):
    core = load_file(folder / "core.safetensors")
    base = our_velocity(inputs)
    print(f"base: ours against core's, relative difference {relative(base, core['base']):.1e}")
    assert relative(base, core["base"]) < 1e-4
    for name in (*MODULES, *FUSED, "bare", "onetrainer", "lycoris"):
        ours = our_velocity(inputs, folder / f"{name}.safetensors")
        effect, difference = relative(ours, base), relative(ours, core[name])
        print(f"{name}: effect of the LoRA {effect:.1e}, ours against core's {difference:.1e}")
        assert effect > 0.01, "the LoRA must act for the comparison to mean anything"
        assert difference < 1e-4


def test_what_core_does_not_load_acts_here_and_loads_there_once_converted(folder, inputs):
    official, foreign = (
        our_velocity(inputs, folder / f"{name}.safetensors") for name in ("official", "comfyui_format")
    )
    core = load_file(folder / "core.safetensors")
    assert torch.equal(core["comfyui_format"], core["base"])
    print(f"comfyui format: against the portable layout {relative(foreign, official):.1e}")
    assert relative(foreign, official) < 1e-6
    portable = convert_lora(folder / "comfyui_format.safetensors", "portable", folder / "converted")
    assert load_file(portable).keys() == load_file(folder / "official.safetensors").keys()
