import math
from pathlib import Path

import pytest
import torch
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.image.latents import pack_latents
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.sampling.euler import Guidance, initial_noise, sample_image
from comfyui_longcat.training.sampling.pictures import sample_edit
from comfyui_longcat.training.sampling.prompts import encode_edit
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.sampling import SampleConfig
from comfyui_longcat.training.weights.spec import ModelSpec

CPU = torch.device("cpu")
EDIT = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
FAMILY = family_of("longcat_image")
TOLERANCE = 1e-5


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    difference = (ours.double() - theirs.double()).abs().max().item()
    print(f"{name}: max difference {difference:.2e}")
    return difference


class Oracle(torch.nn.Module):
    """Knows the clean latents, and predicts the velocity noise - clean as the released transformer would."""

    device = torch.device("cpu")

    def __init__(self, noise: torch.Tensor, clean: torch.Tensor) -> None:
        super().__init__()
        self.x_embedder = torch.nn.Linear(64, 64)
        self.velocity = pack_latents(noise - clean)
        self.sigmas: list[float] = []

    def forward(self, hidden_states, timestep, **others):
        self.sigmas.append(timestep[0].item())
        references = torch.full_like(hidden_states[:, self.velocity.shape[1] :], float("nan"))
        return (torch.cat([self.velocity, references], dim=1),)


class Processor:
    """Stands in for Qwen2VLProcessor, which cannot be made without torchvision; only prompt encoding would use it."""

    image_processor = None


def oracle_inputs(shape):
    return FAMILY.prepare_inputs(shape, randn(shape[0], 10, 64), [randn(*shape, seed=3)])


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    from comfyui_longcat.tests.twins.image_checkpoint import build_tiny_image_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny-edit"
    build_tiny_image_checkpoint(folder)
    return folder


def plain_transformer():
    """The twin's shape with diffusers' own start values: the twin's are enlarged, and rounding with them."""
    from comfyui_longcat.tests.twins.image_checkpoint import TRANSFORMER
    from diffusers import LongCatImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return LongCatImageTransformer2DModel(**TRANSFORMER).eval()


@pytest.fixture(scope="module")
def pipeline(twin):
    """diffusers' edit pipeline on the twin, without the processor that needs torchvision."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import LongCatImageEditPipeline
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    made = LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(twin / "scheduler"),
        vae=AutoencoderKL.from_pretrained(twin / "vae"),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(twin / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(twin / "tokenizer"),
        text_processor=Processor(),
        transformer=plain_transformer(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def picture(width: int, height: int):
    from PIL import Image

    values = (255 * torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    return Image.fromarray(values.numpy()), values.permute(2, 0, 1).unsqueeze(0) / 127.5 - 1


@pytest.mark.parametrize(("steps", "guidance"), [(1, 4.5), (4, 4.5), (8, 1.0)])
def test_edit_equals_the_released_pipeline(pipeline, monkeypatch, steps, guidance):
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as module

    width, height = 128, 96
    image, pixels = picture(width, height)
    embeds = {"make it red": randn(1, 40, 64, seed=1), "": randn(1, 40, 64, seed=2)}
    noise = initial_noise((1, 16, height // 8, width // 8), seed=7)

    def shared_embeds(prompt, image, prompt_embeds, num_images_per_prompt):
        ids = module.prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=40)
        return embeds[prompt], ids

    monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: (width, height))
    monkeypatch.setattr(pipeline, "encode_prompt", shared_embeds)

    def theirs(output_type: str):
        return pipeline(
            image,
            "make it red",
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=pack_latents(noise),
            output_type=output_type,
        ).images

    references = [FAMILY.encode_pixels(pipeline.vae, pixels)]
    inputs = FAMILY.prepare_inputs(noise.shape, embeds["make it red"], references)
    negative = FAMILY.prepare_inputs(noise.shape, embeds[""], references)
    ours = sample_image(FAMILY, pipeline.transformer, noise, inputs, steps, Guidance(inputs=negative, scale=guidance))
    assert (ours - noise).abs().max() > 0.1
    assert largest_difference(f"{steps} steps, latents", pack_latents(ours), theirs("latent")) <= TOLERANCE
    decoded = FAMILY.decode(pipeline.vae, ours) / 2 + 0.5
    assert largest_difference(f"{steps} steps, pixels", decoded, theirs("pt")) <= TOLERANCE


def test_an_edit_scales_and_shifts_its_reference_once(pipeline, twin):
    """From the picture to the sampled latents, through the raw latents that ComfyUI carries in between."""
    spec = ModelSpec(config=EDIT, models_dirs=(twin.parent,), folder=twin)
    image, pixels = picture(96, 64)
    config = SampleConfig(width=96, height=64, num_inference_steps=1, guidance_scale=1.0, seed=7)
    prompts = tuple(encode_edit(spec, image, ["make it red", ""], config, CPU, NoCallbacks()))
    sample = sample_edit(config, spec, prompts, CPU, NoCallbacks(), lambda latents: None)

    vae = pipeline.vae
    reference = pipeline._encode_vae_image(pixels, generator=None)
    noise = initial_noise((1, 16, 8, 12), seed=7)
    inputs = FAMILY.prepare_inputs(noise.shape, prompts[0].prompt_embeds, [reference])
    with open_transformer(spec, CPU, NoCallbacks()) as transformer:
        latents = sample_image(FAMILY, transformer, noise, inputs, 1)
    theirs = latents / vae.config.scaling_factor + vae.config.shift_factor
    assert largest_difference("raw latents", sample.raw_latents, theirs) <= 1e-4


def test_same_seed_means_the_pipelines_noise():
    from diffusers.utils.torch_utils import randn_tensor

    theirs = randn_tensor((1, 16, 8, 12), generator=torch.Generator("cpu").manual_seed(2**53 - 1), dtype=torch.float32)
    assert torch.equal(initial_noise((1, 16, 8, 12), seed=2**53 - 1), theirs)
    assert not torch.equal(initial_noise((1, 16, 8, 12), seed=0), theirs)


@pytest.mark.parametrize("steps", [1, 8, 50])
def test_a_perfect_prediction_leads_to_the_clean_latents(steps):
    clean, noise = randn(2, 16, 8, 12), initial_noise((2, 16, 8, 12), seed=1)
    result = sample_image(FAMILY, Oracle(noise, clean), noise, oracle_inputs(noise.shape), steps)
    assert largest_difference(f"{steps} steps", result, clean) <= 1e-6
    assert result.dtype == torch.float32


def test_the_model_sees_the_released_noise_levels():
    noise = initial_noise((1, 16, 128, 128), seed=1)
    oracle = Oracle(noise, noise)
    sample_image(FAMILY, oracle, noise, oracle_inputs(noise.shape), 8)
    e_mu = math.exp(1.15)
    even = [1 - i / 8 for i in range(8)]
    assert oracle.sigmas == pytest.approx([e_mu * s / (1 + (e_mu - 1) * s) for s in even], abs=1e-6)


def test_each_step_shows_the_current_estimate_of_the_clean_latents():
    clean, noise = randn(1, 16, 8, 12), initial_noise((1, 16, 8, 12), seed=1)
    shown = []
    sample_image(
        FAMILY,
        Oracle(noise, clean),
        noise,
        oracle_inputs(noise.shape),
        3,
        on_step=lambda done, denoised: shown.append((done, denoised)),
    )
    assert [done for done, _ in shown] == [1, 2, 3]
    for _, denoised in shown:
        torch.testing.assert_close(denoised, clean, atol=2e-6, rtol=0)


def test_an_error_in_the_hook_ends_the_sampling():
    noise = initial_noise((1, 16, 8, 8), seed=1)
    oracle = Oracle(noise, noise)

    def stop(done, denoised):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_image(FAMILY, oracle, noise, oracle_inputs(noise.shape), 5, on_step=stop)
    assert len(oracle.sigmas) == 1


@pytest.mark.parametrize(("guidance", "with_negative", "calls"), [(4.5, True, 2), (1.0, True, 1), (4.5, False, 1)])
def test_guidance_costs_a_second_call_only_when_it_acts(guidance, with_negative, calls):
    noise = initial_noise((1, 16, 8, 8), seed=1)
    oracle, inputs = Oracle(noise, noise), oracle_inputs(noise.shape)
    sample_image(FAMILY, oracle, noise, inputs, 3, Guidance(inputs=inputs, scale=guidance) if with_negative else None)
    assert len(oracle.sigmas) == 3 * calls


def test_sampling_keeps_no_graph_and_leaves_the_noise_alone(pipeline):
    pipeline.transformer.requires_grad_(True)
    noise = initial_noise((1, 16, 8, 8), seed=1)
    before = noise.clone()
    with torch.enable_grad():
        result = sample_image(FAMILY, pipeline.transformer, noise, oracle_inputs(noise.shape), 2)
    assert not result.requires_grad
    assert torch.equal(noise, before)
