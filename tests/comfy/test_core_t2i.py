"""Text-to-image against core's own LongCat-Image: its noise levels, and its sampler through some Euler steps.

Core runs with core's Python, its own model class, conditioning, guidance and sampler.
"""

import json
import subprocess

import pytest
import torch
from comfyui_longcat.training.models.flow import image_sigmas, resolution_mu
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.image.latents import denormalise
from comfyui_longcat.training.sampling.euler import Guidance, initial_noise, sample_image
from comfyui_longcat.training.weights.single_file import export_transformer
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy

STEPS = 4
GUIDANCE = 4.5
FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SIGMA_STEPS = (8, 20, 50)

CORE = """
import json, sys
sys.path.insert(0, ".")
from comfy.cli_args import args
args.cpu = True
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
folder, steps, guidance, lists = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
import comfy.sample, comfy.samplers, comfy.sd
patcher = comfy.sd.load_diffusion_model_state_dict(load_file(folder + "/model.safetensors"), {"dtype": torch.float32})
inputs = load_file(folder + "/inputs.safetensors")
sampling = patcher.get_model_object("model_sampling")
outputs = {f"sigmas {n}": comfy.samplers.calculate_sigmas(sampling, "simple", n).contiguous() for n in lists}
for scale in (1.0, guidance):
    outputs[f"guidance {scale}"] = comfy.sample.sample(
        patcher, inputs["noise"], steps, scale, "euler", "simple", [[inputs["prompt_embeds"], {}]],
        [[inputs["negative_embeds"], {}]], torch.zeros_like(inputs["noise"]), disable_pbar=True, seed=0,
    ).float().contiguous()
save_file(outputs, folder + "/core.safetensors")
print(json.dumps({"model": type(patcher.model).__name__, "sampling": [b.__name__ for b in type(sampling).__mro__]}))
"""


class AtOneMegapixel(LongCatImageFamily):
    """Core's native sampling has the shift of 4096 tokens at every size."""

    def flow_shift(self, latents_shape):
        return super().flow_shift((1, 16, 128, 128))


def twin():
    """The twin that core's detection accepts: joint width 3584, heads of 128."""
    from diffusers import LongCatImageTransformer2DModel

    model = LongCatImageTransformer2DModel(num_layers=2, num_single_layers=3, num_attention_heads=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm_" in name and weight.ndim == 1 else 0.0, 0.05, generator=generator)
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(3)
    return {
        "noise": initial_noise((1, 16, 8, 12), seed=5),
        "prompt_embeds": torch.randn(1, 32, 3584, generator=generator),
        "negative_embeds": torch.randn(1, 32, 3584, generator=generator),
    }


@pytest.fixture(scope="module")
def core(comfy, inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("core")
    save_file(inputs, folder / "inputs.safetensors")
    export_transformer(twin(), folder / "model.safetensors")
    arguments = [str(folder), str(STEPS), str(GUIDANCE), json.dumps(SIGMA_STEPS)]
    done = subprocess.run(
        [comfy.python, "-c", CORE, *arguments], cwd=comfy.path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["model"] == "LongCatImage" and "ModelSamplingFlux" in told["sampling"]
    return load_file(folder / "core.safetensors")


@pytest.mark.parametrize("steps", SIGMA_STEPS)
def test_noise_levels_at_4096_tokens_are_cores(core, steps):
    assert resolution_mu(4096) == pytest.approx(1.15)
    ours = image_sigmas(steps, LongCatImageFamily().flow_shift((1, 16, 128, 128)))
    theirs = core[f"sigmas {steps}"]
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max().item()
    print(f"{steps} steps: largest difference of noise levels {difference:.1e}")
    assert difference <= 1e-6


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_sampling_gives_cores_latents(core, inputs, guidance):
    family, noise = AtOneMegapixel(), inputs["noise"]
    positive, negative = (
        family.prepare_inputs(noise.shape, inputs[name], []) for name in ("prompt_embeds", "negative_embeds")
    )
    ours = sample_image(family, twin(), noise, positive, STEPS, Guidance(inputs=negative, scale=guidance))
    ours, theirs = denormalise(ours, FLUX_VAE), core[f"guidance {guidance}"]
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    moved = ((theirs - denormalise(noise, FLUX_VAE)).norm() / theirs.norm()).item()
    print(f"guidance {guidance}, {STEPS} Euler steps: ours against core's, relative difference {difference:.1e}")
    assert moved > 0.1, "the steps must move the latents for the comparison to mean anything"
    assert difference <= 1e-5
