"""Prompts of LongCat-Video: cleaned, read by either text encoder, and always with all slots."""

import logging
from types import SimpleNamespace

import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.models.contract import TextEncoder
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.models.video.prompt import (
    QWEN,
    UMT5,
    clean_prompt,
    encode_prompt,
    fill_slots,
)
from comfyui_longcat.training.settings.geometry import PROMPT_SLOTS
from transformers import CLIPTextConfig

FAMILY = LongCatVideoFamily()
CHINESE = "\u7ea2\u8272\u5706\u5f62\u5411\u4e0a\u79fb\u52a8"
PROMPT = "a red circle moves slowly up"


@pytest.fixture(scope="module")
def encoders():
    from comfyui_longcat.tests.twins.video_checkpoint import build_tiny_video_checkpoint
    from comfyui_longcat.training.weights.video_components import load_text_encoder

    def build(folder, kind):
        from transformers import AutoTokenizer

        build_tiny_video_checkpoint(folder, kind)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        return TextEncoder(model=load_text_encoder(folder, torch.float32), tokenizer=tokenizer, image_processor=None)

    return build


@pytest.fixture(scope="module", params=[UMT5, QWEN])
def encoder(request, encoders, tmp_path_factory):
    return encoders(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def umt5(encoders, tmp_path_factory):
    return encoders(tmp_path_factory.mktemp("models") / "tiny-video", UMT5)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  two \n\t words ", "two words"),
        ("cats &amp;amp; dogs &lt;3", "cats & dogs <3"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("\u201cquoted\u201d", '"quoted"'),
        ("wide\u3000space\u00a0here", "wide space here"),
        (CHINESE, CHINESE),
        ("", ""),
    ],
)
def test_prompts_are_fixed(raw, clean):
    assert clean_prompt(raw) == clean


def test_umt5_equals_the_official_call_with_masked_padding(umt5):
    for prompt in (PROMPT, CHINESE, ""):
        tokens = umt5.tokenizer(
            prompt, padding="max_length", max_length=PROMPT_SLOTS, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            official = umt5.model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        mask = tokens.attention_mask.bool()
        ours = encode_prompt(umt5, prompt)
        difference = (ours - official)[mask].abs().max().item()
        print(f"{prompt!r}: {int(mask.sum())} tokens, differs by {difference:.1e}, scale {official.abs().max():.2f}")
        assert ours.shape == official.shape == (1, PROMPT_SLOTS, 64)
        assert difference < 1e-5
        assert (ours[~mask] == 0).all()
        assert torch.equal(fill_slots(ours)[1], mask)


def test_qwen_equals_its_last_hidden_state_with_masked_padding(encoders, tmp_path):
    qwen = encoders(tmp_path / "qwen", QWEN)
    tokens = qwen.tokenizer(PROMPT, padding="max_length", max_length=PROMPT_SLOTS, return_tensors="pt")
    with torch.no_grad():
        official = qwen.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
    mask = tokens.attention_mask.bool()
    ours = encode_prompt(qwen, PROMPT)
    difference = (ours - official)[mask].abs().max().item()
    print(f"differs by {difference:.1e}, scale {official[mask].abs().max():.2f}")
    assert difference < 1e-5
    assert torch.equal(fill_slots(ours)[1], mask)


def test_prompts_differ_and_the_empty_one_can_be_attended(encoder):
    embeds = {prompt: encode_prompt(encoder, prompt) for prompt in (PROMPT, CHINESE, "", "a blue circle moves up")}
    for prompt, embed in embeds.items():
        assert embed.shape == (1, PROMPT_SLOTS, 64)
        assert not embed.requires_grad
        _, mask = fill_slots(embed)
        used = int(mask.sum())
        assert used >= 1, prompt
        assert mask[0, :used].all() and not mask[0, used:].any()
    made = list(embeds.values())
    assert all((one - other).abs().max() > 1e-3 for number, one in enumerate(made) for other in made[:number])
    # The dirty prompt is the clean one.
    assert torch.equal(encode_prompt(encoder, f"  {PROMPT.replace(' ', '&nbsp;', 1)}\n"), embeds[PROMPT])


def test_long_prompts_are_cut_with_a_warning_and_keep_their_end_token(encoder, caplog):
    long = "red " * 600
    with caplog.at_level(logging.WARNING):
        embeds = encode_prompt(encoder, long)
    assert "tokens; the model reads 512" in caplog.text
    assert fill_slots(embeds)[1].all()
    ids = encoder.tokenizer(clean_prompt(long))["input_ids"][:PROMPT_SLOTS]
    if encoder.model.config.model_type == UMT5:
        ids[-1] = encoder.tokenizer.eos_token_id
        with torch.no_grad():
            wanted = encoder.model(torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(embeds, wanted)


def test_control_tokens_of_qwen_are_plain_text(encoders, tmp_path):
    qwen = encoders(tmp_path / "qwen", QWEN)
    embeds = encode_prompt(qwen, "<|image_pad|>")
    assert int(fill_slots(embeds)[1].sum()) > 1


def test_another_text_encoder_is_refused():
    model = SimpleNamespace(config=CLIPTextConfig())
    with pytest.raises(ModelError, match="clip_text_model; .* umt5 .* qwen2_5_vl"):
        encode_prompt(TextEncoder(model=model, tokenizer=None, image_processor=None), PROMPT)


def test_embeddings_of_any_length_get_all_slots():
    rows = torch.randn(2, 700, 8, generator=torch.Generator().manual_seed(0))
    short, mask = fill_slots(rows[:, :3])
    assert short.shape == (2, PROMPT_SLOTS, 8) and mask.sum(dim=1).tolist() == [3, 3]
    assert torch.equal(short[:, :3], rows[:, :3])
    # ComfyUI's encoder for Wan: longer than 512, unused rows zero.
    rows[1, 40:] = 0
    long, mask = fill_slots(rows)
    assert long.shape == (2, PROMPT_SLOTS, 8) and mask.sum(dim=1).tolist() == [PROMPT_SLOTS, 40]


@pytest.fixture(scope="module")
def transformer():
    from comfyui_longcat.tests.twins.video_checkpoint import build_video_transformer

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(0)
        return build_video_transformer().eval()


@torch.no_grad()
def test_captions_are_not_trimmed_before_the_transformer(transformer):
    """Two captions of 3 and 7 tokens, against the official way: all 512 slots, zeros behind the text embedder."""
    latents, sigmas = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.7, 0.3])
    embeds = torch.randn(2, PROMPT_SLOTS, 64, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(PROMPT_SLOTS) < torch.tensor([[3], [7]])
    cached = embeds[:, :7] * mask[:, :7, None]
    ours = FAMILY.predict(transformer, latents, sigmas, FAMILY.prepare_inputs(latents.shape, cached, []))
    hook = transformer.y_embedder.register_forward_hook(lambda module, arguments, output: output * mask[..., None])
    try:
        official = transformer(hidden_states=latents, timestep=1000 * sigmas, encoder_hidden_states=embeds)
    finally:
        hook.remove()
    difference = (ours + official).abs().max().item()
    print(f"differs by {difference:.1e} on a scale of {official.abs().max():.2f}")
    assert difference < 1e-5


def test_padding_is_attended_but_what_stands_in_it_is_not(transformer, umt5):
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    sigmas = torch.tensor([0.7])
    embeds = encode_prompt(umt5, PROMPT)
    used = int(fill_slots(embeds)[1].sum())
    with torch.no_grad():
        whole = FAMILY.predict(transformer, latents, sigmas, FAMILY.prepare_inputs(latents.shape, embeds, []))
        refilled = FAMILY.prepare_inputs(latents.shape, embeds[:, :used], [])
        again = FAMILY.predict(transformer, latents, sigmas, refilled)
        spoilt = embeds.clone()
        spoilt[:, used:] = 99.0
        mask = torch.arange(PROMPT_SLOTS) < used
        given = {"hidden_states": latents, "timestep": 1000 * sigmas, "encoder_attention_mask": mask[None]}
        masked = -transformer(encoder_hidden_states=spoilt, **given)
        trimmed = -transformer(
            encoder_hidden_states=embeds[:, :used], **given | {"encoder_attention_mask": mask[None, :used]}
        )
    assert torch.equal(whole, again)
    assert torch.equal(whole, masked)
    # The reason why a prompt is never cut to its length in front of the transformer.
    difference = (whole - trimmed).abs().max().item()
    print(f"trimmed to its length: {difference:.3f} on a scale of {whole.abs().max():.2f}")
    assert difference > 0.01
