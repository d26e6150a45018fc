"""Text-to-image: parity with the released pipeline, renormalised guidance, batches, and what is refused."""

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.events import NoCallbacks, WarningRaised
from comfyui_longcat.training.models.image.latents import pack_latents
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.sampling.euler import Guidance, initial_noise, sample_image
from comfyui_longcat.training.sampling.pictures import sample_edit, sample_t2i
from comfyui_longcat.training.sampling.prompts import Conditioning, encode_edit, encode_prompts
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.sampling import SampleConfig, TextToImageConfig
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image

FAMILY = family_of("longcat_image")
CPU = torch.device("cpu")
TOLERANCE = 1e-5
WIDTH, HEIGHT = 128, 96
SLOTS = 512
"""The released pipeline lays the picture's positions behind 512 text tokens, however many there are."""


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    difference = (ours.double() - theirs.double()).abs().max().item()
    print(f"{name}: max difference {difference:.2e}")
    return difference


def plain_transformer():
    """The twin's shape with diffusers' own start values: the twin's are enlarged, and rounding with them."""
    from comfyui_longcat.tests.twins.image_checkpoint import TRANSFORMER
    from diffusers import LongCatImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return LongCatImageTransformer2DModel(**TRANSFORMER).eval()


class Processor:
    """Stands in for Qwen2VLProcessor, which cannot be made without torchvision; only prompt rewriting would use it."""

    image_processor = None


EMBEDS = {"a red circle": randn(1, SLOTS, 64, seed=1), "a blue one": randn(1, SLOTS, 64, seed=2)}
EMBEDS[""] = randn(1, SLOTS, 64, seed=3)


def embeds_of(prompts: list[str]) -> torch.Tensor:
    return torch.cat([EMBEDS[prompt] for prompt in prompts])


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    """diffusers' text-to-image pipeline on the twin, its prompt encoding replaced by embeddings that we share."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.longcat_image import pipeline_longcat_image as module
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    made = module.LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(tiny_checkpoint / "scheduler"),
        vae=AutoencoderKL.from_pretrained(tiny_checkpoint / "vae"),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(tiny_checkpoint / "tokenizer"),
        text_processor=Processor(),
        transformer=plain_transformer(),
    )

    def shared_embeds(prompt, prompt_embeds=None, num_images_per_prompt=1):
        ids = module.prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=SLOTS)
        return embeds_of(prompt), ids

    made.encode_prompt = shared_embeds
    made.set_progress_bar_config(disable=True)
    return made


def ours_of(pipeline, noise, prompts: list[str], steps: int, guidance: float, renorm: bool) -> torch.Tensor:
    inputs = FAMILY.prepare_inputs(noise.shape, embeds_of(prompts), [])
    negative = FAMILY.prepare_inputs(noise.shape, embeds_of([""] * len(prompts)), [])
    guided = Guidance(inputs=negative, scale=guidance, renorm=renorm)
    return sample_image(FAMILY, pipeline.transformer, noise, inputs, steps, guided)


@pytest.mark.parametrize(
    ("prompts", "steps", "guidance", "renorm"),
    [
        (["a red circle"], 4, 4.5, True),
        (["a red circle"], 4, 4.5, False),
        (["a red circle"], 3, 1.0, True),
        (["a red circle", "a blue one"], 3, 4.5, True),
    ],
)
def test_equals_the_released_pipeline(pipeline, prompts, steps, guidance, renorm):
    noise = initial_noise((len(prompts), 16, HEIGHT // 8, WIDTH // 8), seed=7)

    def theirs(output_type: str) -> torch.Tensor:
        return pipeline(
            prompts,
            negative_prompt=[""] * len(prompts),
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=pack_latents(noise),
            output_type=output_type,
            enable_cfg_renorm=renorm,
            enable_prompt_rewrite=False,
        ).images

    ours = ours_of(pipeline, noise, prompts, steps, guidance, renorm)
    assert (ours - noise).abs().max() > 0.1
    name = f"{len(prompts)} prompts, {steps} steps, guidance {guidance}, renorm {renorm}"
    assert largest_difference(f"{name}, latents", pack_latents(ours), theirs("latent")) <= TOLERANCE
    decoded = FAMILY.decode(pipeline.vae, ours) / 2 + 0.5
    assert largest_difference(f"{name}, pixels", decoded, theirs("pt")) <= TOLERANCE


def test_renormalised_tokens_are_never_longer_than_unguided_ones():
    velocity, negative = randn(2, 16, 6, 8, seed=1), randn(2, 16, 6, 8, seed=2)
    inputs = FAMILY.prepare_inputs(velocity.shape, randn(2, 8, 64, seed=3), [])
    plain, renormed = (
        Guidance(inputs=inputs, scale=4.5, renorm=renorm).apply(velocity, negative) for renorm in (False, True)
    )
    wanted, free, bound = (pack_latents(each).norm(dim=-1) for each in (velocity, plain, renormed))
    assert (free > wanted).any()
    torch.testing.assert_close(bound, torch.minimum(free, wanted), rtol=1e-5, atol=0)
    # Only the length changes, not the direction.
    cosine = torch.cosine_similarity(pack_latents(plain), pack_latents(renormed), dim=-1)
    assert cosine.min() > 1 - 1e-5


def test_the_samples_of_a_batch_do_not_touch_each_other(pipeline):
    noise = initial_noise((2, 16, 6, 8), seed=4)
    prompts = ["a red circle", "a blue one"]
    together = ours_of(pipeline, noise, prompts, 2, 4.5, True)
    apart = [ours_of(pipeline, noise[i : i + 1], [prompt], 2, 4.5, True) for i, prompt in enumerate(prompts)]
    assert largest_difference("batch of 2 against one by one", together, torch.cat(apart)) <= TOLERANCE
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("size", [(6, 8), (128, 128)])
def test_position_ids_are_never_float64(size):
    shape = (1, 16, *size)
    for references in ([], [randn(1, 16, 4, 6, seed=0)]):
        inputs = FAMILY.prepare_inputs(shape, randn(1, 20, 64, seed=1), references)
        # MPS has no float64; float32 holds these small whole numbers exactly.
        assert {inputs.img_ids.dtype, inputs.txt_ids.dtype} == {torch.float32}
        assert torch.equal(inputs.img_ids, inputs.img_ids.round()) and inputs.img_ids.max() < 2**24


def spec_of(flavour: str, **others) -> ModelSpec:
    config = ModelConfig(model_flavour=flavour, base_model_precision="fp32")
    return ModelSpec(config=config, models_dirs=(), **others)


def conditioning(reference: bool = False) -> Conditioning:
    return Conditioning(
        prompt_embeds=randn(1, 20, 64, seed=1), raw_cond_latents=randn(1, 16, 8, 8, seed=2) if reference else None
    )


@pytest.mark.parametrize("flavour", ["edit", "edit-turbo", "tiny-edit"])
def test_edit_flavours_are_refused_before_anything_loads(flavour):
    # No folder and no models_dirs: anything that looked for the model would fail otherwise.
    with pytest.raises(ConfigError, match=f"model_flavour {flavour} edits a reference picture.*Encode Edit Prompt"):
        encode_prompts(spec_of(flavour), ["x"], CPU, NoCallbacks())
    with pytest.raises(ConfigError, match=f"model_flavour {flavour} edits a reference picture"):
        sample_t2i(
            TextToImageConfig(), spec_of(flavour), (conditioning(),) * 2, CPU, NoCallbacks(), lambda latents: None
        )


@pytest.mark.parametrize("flavour", ["final", "dev", "tiny"])
def test_text_flavours_do_not_edit(flavour):
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(ConfigError, match=f"model_flavour {flavour} draws from text.*Encode LongCat Prompt"):
        encode_edit(spec_of(flavour), picture, ["x"], SampleConfig(), CPU, NoCallbacks())
    with pytest.raises(ConfigError, match=f"model_flavour {flavour} draws from text"):
        sample_edit(
            SampleConfig(), spec_of(flavour), (conditioning(True),) * 2, CPU, NoCallbacks(), lambda latents: None
        )


def test_a_prompt_with_a_reference_is_refused():
    prompts = (conditioning(), conditioning(True))
    with pytest.raises(ConfigError, match="negative holds a reference picture.*Encode LongCat Prompt"):
        sample_t2i(TextToImageConfig(), spec_of("tiny"), prompts, CPU, NoCallbacks(), lambda latents: None)


@pytest.mark.parametrize(("guidance", "warned"), [(4.5, True), (1.0, False)])
def test_turbo_samples_and_warns_of_guidance(tiny_checkpoint, listener, guidance, warned):
    heard = listener()
    config = SampleConfig(num_inference_steps=1, guidance_scale=guidance)
    prompts = (conditioning(True), conditioning(True))
    spec = spec_of("edit-turbo", folder=tiny_checkpoint)
    sample = sample_edit(config, spec, prompts, CPU, heard, lambda latents: None)
    assert sample.pixels.shape == (1, 3, 64, 64) and sample.pixels.isfinite().all()
    messages = [event.message for event in heard.of(WarningRaised)]
    assert [message.startswith("model_flavour edit-turbo was distilled") for message in messages] == [True] * warned


def test_sizes_are_multiples_of_16_and_default_to_a_megapixel():
    config = TextToImageConfig()
    assert (config.width, config.height, config.num_inference_steps, config.guidance_scale) == (1024, 1024, 50, 4.5)
    assert config.cfg_renorm
    assert TextToImageConfig(width=480, height=848).height == 848
    with pytest.raises(ConfigError, match="width .Sample T2I. is 1000; it must be a multiple of 16. Use 992 or"):
        TextToImageConfig(width=1000)
    with pytest.raises(ConfigError, match="height .* is 0; it must lie between 16 and 4096"):
        TextToImageConfig(height=0)
