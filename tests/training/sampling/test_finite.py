"""A sampler hands on nothing that is not finite: not a picture, not a clip, not a preview."""

from types import SimpleNamespace

import pytest
import torch
from comfyui_longcat.training.errors import NonFiniteError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.models.video.family import VideoInputs
from comfyui_longcat.training.sampling.clips import sample_clip
from comfyui_longcat.training.sampling.euler import decode, sample_image, sample_video
from comfyui_longcat.training.sampling.pictures import sample_t2i
from comfyui_longcat.training.sampling.prompts import Conditioning
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.sampling import TextToImageConfig, VideoSampleConfig
from comfyui_longcat.training.weights.components import open_vae
from comfyui_longcat.training.weights.source import component_config, resolve_folder
from comfyui_longcat.training.weights.spec import LoraUse, ModelSpec
from safetensors.torch import save_file

CPU = torch.device("cpu")
TWINS = {"longcat_image": "tiny", "longcat_video": "tiny-video"}
MODULES = {
    "longcat_image": ("transformer.x_embedder", "joint_attention_dim"),
    "longcat_video": ("diffusion_model.blocks.0.ffn.w2", "caption_channels"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def strong_lora(spec: ModelSpec, path) -> LoraUse:
    """Finite itself; what the model computes with it is not."""
    from comfyui_longcat.training.lora.transformer import open_transformer

    name, _ = MODULES[spec.config.model_family]
    with open_transformer(spec, CPU, NoCallbacks()) as transformer:
        linear = transformer.get_submodule(name.partition(".")[2])
        height, width = linear.out_features, linear.in_features
    save_file(
        {
            f"{name}.lora_A.weight": torch.full((1, width), 1e30),
            f"{name}.lora_B.weight": torch.full((height, 1), 1e30),
            f"{name}.alpha": torch.tensor(1.0),
        },
        path,
    )
    return LoraUse(path=path)


@pytest.mark.parametrize("family", TWINS)
def test_a_lora_that_is_too_strong_ends_in_our_error(models, tmp_path, family):
    config = ModelConfig(model_family=family, model_flavour=TWINS[family], base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(models,))
    width = component_config(spec, "transformer", NoCallbacks())[MODULES[family][1]]
    prompts = (Conditioning(prompt_embeds=torch.ones(1, 512, width)),) * 2
    spec = spec.with_lora(strong_lora(spec, tmp_path / "strong.safetensors"))
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinity at step 1 of 2, .*lower its strength .Load LongCat LoRA."
    ):
        if family == "longcat_image":
            size = TextToImageConfig(width=64, height=64, num_inference_steps=2)
            sample_t2i(size, spec, prompts, CPU, NoCallbacks(), lambda latents: None)
        else:
            size = VideoSampleConfig(width=64, height=64, num_frames=5, num_inference_steps=2)
            sample_clip(size, spec, prompts, None, CPU, NoCallbacks(), lambda latents: None)


class FailsLate:
    """Predicts nothing but zeros, and from its third step on one number that is none."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def flow_shift(self, shape):
        return 1.0

    def predict(self, transformer, latents, sigmas, inputs):
        self.calls += 1
        velocity = torch.zeros_like(latents)
        if self.calls > 2:
            velocity.view(-1)[-1] = self.value
        return velocity


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_step_that_is_not_finite_is_the_last_and_is_not_shown(value):
    shown = []
    image, video = FailsLate(value), FailsLate(value)
    with pytest.raises(NonFiniteError, match="at step 3 of 5"):
        inputs = SimpleNamespace(prompt_embeds=torch.zeros(1))
        sample_image(image, None, torch.zeros(1, 2, 4, 4), inputs, 5, on_step=lambda done, _: shown.append(done))
    with pytest.raises(NonFiniteError, match="at step 3 of 5"):
        inputs = VideoInputs(prompt_embeds=torch.zeros(1, 1, 1), prompt_mask=torch.ones(1, 1), cond_latents=None)
        sigmas = torch.linspace(1, 0, 6)
        sample_video(video, None, torch.zeros(1, 2, 3, 4, 4), inputs, sigmas, None, lambda done, _: shown.append(done))
    assert (image.calls, video.calls, shown) == (3, 3, [1, 2, 1, 2])


@pytest.mark.parametrize("family", TWINS)
def test_pixels_that_are_not_finite_are_not_handed_on(models, family):
    config = ModelConfig(model_family=family, model_flavour=TWINS[family])
    spec = ModelSpec(config=config, models_dirs=(models,))
    resolve_folder(spec, NoCallbacks())
    shape = (1, 16, 4, 4) if family == "longcat_image" else (1, 16, 2, 4, 4)
    with open_vae(spec, CPU, NoCallbacks()) as vae, torch.no_grad():
        assert decode(family_of(family), vae, torch.zeros(shape)).isfinite().all()
        with pytest.raises(NonFiniteError, match="at the VAE, which would be a black picture"):
            decode(family_of(family), vae, torch.full(shape, float("nan")))
