"""Prompts of text-to-image, Chinese and English, with the twin's real Qwen2.5-VL."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.models.image import prompt as own
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.sampling.prompts import encode_prompts
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.components import open_text_encoder
from comfyui_longcat.training.weights.spec import ModelSpec

FAMILY = family_of("longcat_image")
ENGLISH = 'a red circle, and the words "don\'t panic"'
CHINESE = "\u4e00\u4e2a\u7ea2\u8272\u7684\u5706\u5f62\uff0c\u5199\u7740\u201c\u4f60\u597d\u201d"
PROMPTS = ["a red circle", ENGLISH, CHINESE, ""]


@pytest.fixture(scope="module")
def text_encoder(tiny_checkpoint):
    # The edit twin's text encoder is also the text-to-image twin's.
    config = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(), folder=tiny_checkpoint)
    with open_text_encoder(spec, torch.device("cpu"), NoCallbacks()) as opened:
        yield opened


def sequence(text_encoder, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    return own.build_sequence(text_encoder.tokenizer, prompt, image_tokens=0)


@torch.no_grad()
def library_states(text_encoder, prompt: str, **extra) -> torch.Tensor:
    """hidden_states[-1] of the whole model, cut as the released pipeline cuts it -> [512, D]"""
    input_ids, mask = sequence(text_encoder, prompt)
    output = text_encoder.model(
        input_ids=input_ids.unsqueeze(0), attention_mask=mask.unsqueeze(0), output_hidden_states=True, **extra
    )
    prefix, suffix = (len(text_encoder.tokenizer(text)["input_ids"]) for text in (own.TEXT_PREFIX, own.SUFFIX))
    return output.hidden_states[-1][0, prefix:-suffix]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_sequence_equals_the_released_pipelines(text_encoder, prompt):
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import LongCatImagePipeline

    seen = {}

    def record(input_ids, attention_mask, output_hidden_states):
        seen.update(input_ids=input_ids[0], attention_mask=attention_mask[0])
        raise StopIteration

    pipeline = SimpleNamespace(
        tokenizer=text_encoder.tokenizer,
        tokenizer_max_length=512,
        prompt_template_encode_prefix=own.TEXT_PREFIX,
        prompt_template_encode_suffix=own.SUFFIX,
        device=torch.device("cpu"),
        text_encoder=record,
    )
    with pytest.raises(StopIteration):
        LongCatImagePipeline._encode_prompt(pipeline, [prompt])
    input_ids, mask = sequence(text_encoder, prompt)
    assert torch.equal(input_ids, seen["input_ids"]) and torch.equal(mask, seen["attention_mask"])


def test_template_is_the_released_pipelines():
    import inspect

    from diffusers.pipelines.longcat_image import pipeline_longcat_image as module

    source = inspect.getsource(module.LongCatImagePipeline.__init__)
    assert repr(own.TEXT_PREFIX).replace("'", '"') in source
    assert repr(own.SUFFIX).replace("'", '"') in source


@pytest.mark.parametrize("prompt", PROMPTS)
def test_positions_equal_the_librarys_on_attended_tokens(text_encoder, typed, prompt):
    input_ids, mask = sequence(text_encoder, prompt)
    ours = own.position_ids(torch.zeros_like(input_ids, dtype=torch.bool), mask, 0, 0)
    theirs, _ = text_encoder.model.model.get_rope_index(
        input_ids.unsqueeze(0),
        attention_mask=mask.unsqueeze(0),
        **typed(torch.zeros_like(input_ids).unsqueeze(0)),
    )
    attended = mask.bool()
    difference = (ours - theirs)[:, :, attended].abs().max().item()
    print(f"largest difference of positions {difference}")
    assert ours.shape == theirs.shape and ours.dtype == torch.int64
    assert difference == 0
    assert (ours[:, :, ~attended] == 1).all()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_are_the_librarys_last_hidden_state(text_encoder, prompt):
    ours = FAMILY.encode_prompt(text_encoder, prompt, [])
    assert ours.shape == (1, 512, 64) and not ours.requires_grad
    input_ids, mask = sequence(text_encoder, prompt)
    positions = own.position_ids(torch.zeros_like(input_ids, dtype=torch.bool), mask, 0, 0)
    theirs = library_states(text_encoder, prompt, position_ids=positions)
    print(f"same positions: max difference {(ours[0] - theirs).abs().max():.2e}")
    assert (ours[0] - theirs).abs().max() <= 1e-6
    # The library's own positions differ on pads only.
    used = len(own.tokenize_prompt(text_encoder.tokenizer, prompt))
    plain = library_states(text_encoder, prompt)
    if used:
        print(f"library's positions, prompt: max difference {(ours[0] - plain)[:used].abs().max():.2e}")
        assert (ours[0] - plain)[:used].abs().max() <= 1e-6
    pads = ours[0, used:]
    assert (pads - pads[0]).abs().max() <= 1e-6


def test_every_prompt_has_its_own_embeddings(text_encoder):
    embeds = [FAMILY.encode_prompt(text_encoder, prompt, []) for prompt in PROMPTS]
    for i, one in enumerate(embeds):
        for other in embeds[:i]:
            assert (one - other).abs().max() > 1e-3


def test_the_template_without_a_picture_is_another_one(text_encoder):
    pixels = torch.zeros(1, 3, 64, 64)
    with_picture = FAMILY.encode_prompt(text_encoder, "a red circle", [pixels])
    without = FAMILY.encode_prompt(text_encoder, "a red circle", [])
    assert with_picture.shape[1] == 6 + without.shape[1]
    assert (with_picture[:, 6:] - without).abs().max() > 1e-3


def comfy_tokenizer_folder() -> Path:
    root = os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI"
    return Path(root).expanduser() / "comfy" / "text_encoders" / "qwen25_tokenizer"


@pytest.mark.comfy
@pytest.mark.skipif(not comfy_tokenizer_folder().is_dir(), reason="no ComfyUI with Qwen2.5's tokenizer")
def test_counts_with_the_released_tokenizer():
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(comfy_tokenizer_folder())
    assert len(tokenizer(own.TEXT_PREFIX, add_special_tokens=False)["input_ids"]) == 36
    input_ids, mask = own.build_sequence(tokenizer, CHINESE, image_tokens=0)
    assert len(input_ids) == 36 + 512 + 5
    assert (input_ids[mask == 0] == 151643).all()
    quoted = [text for text, is_quoted in own.split_quotes(CHINESE) if is_quoted]
    assert quoted == ["\u201c\u4f60\u597d\u201d"]
    ids = own.tokenize_prompt(tokenizer, CHINESE)
    assert [tokenizer.decode(token) for token in ids[-4:]] == list(quoted[0])


def test_encode_prompts_gives_one_conditioning_a_prompt(tmp_path, text_encoder):
    # Builds the text-to-image twin by itself.
    config = ModelConfig(model_flavour="tiny", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(tmp_path,))
    encoded = encode_prompts(spec, (CHINESE, ""), torch.device("cpu"), NoCallbacks())
    assert [each.raw_cond_latents for each in encoded] == [None, None]
    for each, prompt in zip(encoded, (CHINESE, ""), strict=True):
        assert torch.equal(each.prompt_embeds, FAMILY.encode_prompt(text_encoder, prompt, []))
    assert (tmp_path / "tiny" / "model_index.json").is_file()
