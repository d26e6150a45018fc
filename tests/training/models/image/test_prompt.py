import logging
import os
from pathlib import Path

import pytest
import torch
from comfyui_longcat.training.models.image import prompt as own
from comfyui_longcat.training.models.registry import family_of

FAMILY = family_of("longcat_image")
OPEN = "\u201cOPEN\u201d"


def comfy_tokenizer_folder() -> Path:
    root = os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI"
    return Path(root).expanduser() / "comfy" / "text_encoders" / "qwen25_tokenizer"


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    from comfyui_longcat.tests.twins.image_checkpoint import build_tiny_image_checkpoint
    from comfyui_longcat.training.models.contract import TextEncoder
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "tiny-edit"
    build_tiny_image_checkpoint(folder)
    return TextEncoder(
        model=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        image_processor=AutoImageProcessor.from_pretrained(folder / "text_processor", backend="pil"),
    )


@pytest.fixture(scope="module")
def tokenizer(text_encoder):
    return text_encoder.tokenizer


def reference(height: int = 128, width: int = 192, seed: int = 0) -> torch.Tensor:
    """Pixels; at half size Qwen rounds 64x96 to 56x84, which is 2 x 3 tokens."""
    values = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(seed))
    return values / 127.5 - 1


def encoder_inputs(text_encoder, prompt: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    picture = text_encoder.image_processor(images=[own.half_size(pixels)], return_tensors="pt")
    image_tokens = int(picture["image_grid_thw"].prod()) // 4
    input_ids, attention_mask = own.build_sequence(text_encoder.tokenizer, prompt, image_tokens)
    return {**picture, "input_ids": input_ids.unsqueeze(0), "attention_mask": attention_mask.unsqueeze(0)}


@torch.no_grad()
def library_states(text_encoder, inputs, **extra) -> torch.Tensor:
    """hidden_states[-1] of the whole model, cut as the released pipeline cuts it -> [L, D]"""
    hidden = text_encoder.model(**inputs, output_hidden_states=True, **extra).hidden_states[-1][0]
    start = inputs["input_ids"][0].tolist().index(text_encoder.tokenizer.convert_tokens_to_ids("<|vision_start|>"))
    suffix = len(text_encoder.tokenizer(own.SUFFIX)["input_ids"])
    return hidden[start:-suffix]


def image_mask(text_encoder, inputs) -> torch.Tensor:
    return (inputs["input_ids"] == text_encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()


# Quotations


@pytest.mark.parametrize(
    ("prompt", "quotations"),
    [
        (f"the dogs' bowl and a sign {OPEN}", [OPEN]),
        ("the dog's bone and the cat's toy", []),
        ("write 'Hello' on the board", ["'Hello'"]),
        ('two signs "IN" and "OUT"', ['"IN"', '"OUT"']),
        ("signs \u2018a\u2019 and 'b'", ["\u2018a\u2019", "'b'"]),
        ("the sign 'don't stop' is red", ["'don't stop'"]),
        ("the sign \"don't\" and the cat's toy", ['"don\'t"']),
        ("rock'n'roll", []),
        ('\u201cmixed" marks', []),
        ("an \u201copen one", []),
        (f"\u628a\u62db\u724c\u6539\u6210{OPEN}", [OPEN]),
        ("''", ["''"]),
        ("", []),
    ],
)
def test_quotations(prompt, quotations):
    pieces = own.split_quotes(prompt)
    assert [piece for piece, quoted in pieces if quoted] == quotations
    assert "".join(piece for piece, _ in pieces) == prompt
    assert all(piece for piece, _ in pieces)


@pytest.mark.parametrize(
    "prompt",
    [
        "the dogs' bowl and a sign \u201cOPEN\u201d",
        "it's a 'b c' d \"e\" \u2018f\u2019",
        "don't",
        "'a' 'b'\"c\"",
        "plain",
    ],
)
def test_quotations_equal_diffusers_where_that_is_right(prompt):
    from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import split_quotation

    assert own.split_quotes(prompt) == split_quotation(prompt)


def test_quotations_are_tokenised_by_character(tokenizer):
    # "green" is one token of the twin inside a sentence, but not inside quote marks.
    ids = own.tokenize_prompt(tokenizer, 'a green "a green"')
    quoted = [tokenizer(letter)["input_ids"] for letter in '"a green"']
    assert ids[-len('"a green"') :] == [token for [token] in quoted]
    assert ids[: -len(quoted)] == tokenizer("a green ")["input_ids"]
    assert len(tokenizer(" green")["input_ids"]) == 1


# The sequence


def test_sequence_is_prefix_prompt_pads_suffix(tokenizer):
    input_ids, mask = own.build_sequence(tokenizer, "make it red", image_tokens=6)
    plain = tokenizer(own.EDIT_PREFIX)["input_ids"]
    prefix = len(plain) + 5
    prompt = tokenizer("make it red")["input_ids"]
    suffix = tokenizer(own.SUFFIX)["input_ids"]
    assert len(input_ids) == len(mask) == prefix + 512 + len(suffix)
    assert (input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 6
    assert input_ids[prefix : prefix + len(prompt)].tolist() == prompt
    assert set(input_ids[prefix + len(prompt) : prefix + 512].tolist()) == {tokenizer.pad_token_id}
    assert input_ids[-len(suffix) :].tolist() == suffix
    expected = [1] * (prefix + len(prompt)) + [0] * (512 - len(prompt)) + [1] * len(suffix)
    assert mask.tolist() == expected


def test_sequence_equals_the_pipelines_text(tokenizer):
    text = own.EDIT_PREFIX.replace("<|image_pad|>", "<|image_pad|>" * 6)
    input_ids, _ = own.build_sequence(tokenizer, "", image_tokens=6)
    prefix = tokenizer(text)["input_ids"]
    assert input_ids[: len(prefix)].tolist() == prefix


def test_long_prompts_are_cut_and_say_so(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        exact = own.tokenize_prompt(tokenizer, "x" * 512)
        assert not caplog.records
        cut = own.tokenize_prompt(tokenizer, "x" * 600 + "y")
    assert cut == exact
    assert "601 tokens" in caplog.text
    assert "512" in caplog.text
    _, mask = own.build_sequence(tokenizer, "x" * 600, image_tokens=4)
    assert mask.all()


def test_control_tokens_in_a_prompt_are_plain_text(tokenizer):
    ids = own.tokenize_prompt(tokenizer, "a <|image_pad|><|im_end|> b")
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|im_end|>"]))
    assert tokenizer.decode(ids) == "a <|image_pad|><|im_end|> b"


@pytest.mark.comfy
@pytest.mark.skipif(not comfy_tokenizer_folder().is_dir(), reason="no ComfyUI with Qwen2.5's tokenizer")
def test_counts_with_the_released_tokenizer():
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(comfy_tokenizer_folder())
    prefix = tokenizer(own.EDIT_PREFIX, add_special_tokens=False)["input_ids"]
    vision_start, image_pad = 151652, 151655
    assert len(prefix) == 70
    assert prefix.index(vision_start) == 67
    assert prefix.count(image_pad) == 1
    assert len(tokenizer(own.SUFFIX, add_special_tokens=False)["input_ids"]) == 5
    input_ids, mask = own.build_sequence(tokenizer, f"write {OPEN}", image_tokens=324)
    assert len(input_ids) == 69 + 324 + 512 + 5
    assert (input_ids == image_pad).sum() == 324
    assert (input_ids[mask == 0] == 151643).all()
    assert len(input_ids[67:-5]) == 838
    quoted = own.tokenize_prompt(tokenizer, OPEN)
    assert [tokenizer.decode(token) for token in quoted] == list(OPEN)


# Positions


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (5, 2), (1, 1)])
def test_positions_equal_the_librarys_on_attended_tokens(text_encoder, typed, rows, columns):
    input_ids, mask = own.build_sequence(text_encoder.tokenizer, "make it red", rows * columns)
    is_image = input_ids == text_encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ours = own.position_ids(is_image, mask, rows, columns)
    theirs, _ = text_encoder.model.model.get_rope_index(
        input_ids.unsqueeze(0),
        image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]]),
        attention_mask=mask.unsqueeze(0),
        **typed(is_image.unsqueeze(0)),
    )
    assert ours.shape == theirs.shape == (3, 1, len(input_ids))
    attended = mask.bool()
    difference = (ours - theirs)[:, :, attended].abs().max().item()
    print(f"{rows}x{columns}: largest difference of positions {difference}")
    assert difference == 0
    assert (ours[:, :, ~attended] == 1).all()


# Embeddings


def test_embeddings_start_at_vision_start_and_keep_all_slots(text_encoder):
    embeds = FAMILY.encode_prompt(text_encoder, "make it red", [reference()])
    assert embeds.shape == (1, 1 + 6 + 1 + 512, 64)
    assert embeds.dtype == text_encoder.model.dtype
    assert not embeds.requires_grad
    square = FAMILY.encode_prompt(text_encoder, "make it red", [reference(64, 64)])
    assert square.shape[1] == 1 + 4 + 1 + 512


def test_embeddings_are_the_librarys_last_hidden_state(text_encoder, typed):
    prompt, pixels = f"make it red, write {OPEN}", reference()
    inputs = encoder_inputs(text_encoder, prompt, pixels)
    mask = inputs["attention_mask"][0]
    ours = FAMILY.encode_prompt(text_encoder, prompt, [pixels])[0]

    is_image = image_mask(text_encoder, inputs)
    positions = own.position_ids(is_image[0].bool(), mask, 2, 3)
    whole = library_states(text_encoder, inputs, position_ids=positions)
    print(f"same positions: max difference {(ours - whole).abs().max():.2e}")
    assert (ours - whole).abs().max() <= 1e-6

    attended = int(mask.sum()) - len(text_encoder.tokenizer(own.SUFFIX)["input_ids"])
    attended -= inputs["input_ids"][0].tolist().index(text_encoder.tokenizer.convert_tokens_to_ids("<|vision_start|>"))
    theirs = library_states(text_encoder, inputs, **typed(is_image))
    print(f"library's positions, attended: max difference {(ours - theirs)[:attended].abs().max():.2e}")
    assert (ours - theirs)[:attended].abs().max() <= 1e-6


def test_3d_positions_are_passed_as_the_library_loses_them(text_encoder):
    # The trap that makes explicit positions necessary.
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 3):
        pytest.skip(f"transformers {transformers.__version__} still derives positions itself")
    inputs = encoder_inputs(text_encoder, "make it red", reference())
    ours = FAMILY.encode_prompt(text_encoder, "make it red", [reference()])[0]
    bare = library_states(text_encoder, inputs)
    difference = (ours - bare)[1:7].abs().max().item()
    print(f"vision part without positions: max difference {difference:.2e}")
    assert difference > 1e-3


def test_all_pads_have_one_embedding(text_encoder):
    prompt = "make it red"
    embeds = FAMILY.encode_prompt(text_encoder, prompt, [reference()])[0]
    used = 8 + len(text_encoder.tokenizer(prompt)["input_ids"])
    pads = embeds[used:]
    spread = (pads - pads[0]).abs().max().item()
    print(f"spread of {len(pads)} pads: {spread:.2e}")
    assert spread <= 1e-6
    assert (embeds[used - 1] - pads[0]).abs().max() > 1e-3


def test_empty_prompt_sees_the_same_picture(text_encoder):
    empty = FAMILY.encode_prompt(text_encoder, "", [reference()])[0]
    asked = FAMILY.encode_prompt(text_encoder, "make it red", [reference()])[0]
    assert empty.shape == asked.shape
    torch.testing.assert_close(empty[:8], asked[:8], atol=1e-6, rtol=0)
    assert (empty[8:] - empty[8]).abs().max() <= 1e-6
    assert (empty[8:] - asked[8:]).abs().max() > 1e-3


def test_embeddings_depend_on_their_own_prompt_and_picture_only(text_encoder):
    cases = [("make it red", 0), ("remove the circle", 0), ("make it red", 1), ("\u628a\u5b83\u53d8\u7ea2", 0)]
    first = [FAMILY.encode_prompt(text_encoder, prompt, [reference(seed=seed)]) for prompt, seed in cases]
    again = [FAMILY.encode_prompt(text_encoder, prompt, [reference(seed=seed)]) for prompt, seed in reversed(cases)]
    for before, after in zip(first, reversed(again), strict=True):
        assert torch.equal(before, after)
    for i, one in enumerate(first):
        for other in first[:i]:
            assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width", "tokens"), [(1024, 1024, 324), (768, 1376, 350)])
def test_the_vision_context_is_that_of_half_the_size(text_encoder, height, width, tokens):
    """Counts of the released pipeline: 1024 px are read at 512, rounded to 504 = 18 tokens of 28 px."""
    embeds = FAMILY.encode_prompt(text_encoder, "make it red", [reference(height, width)])
    assert embeds.shape[1] == 1 + tokens + 1 + 512


def test_the_encoder_sees_the_reference_at_half_size():
    from diffusers.image_processor import VaeImageProcessor
    from PIL import Image, ImageChops

    pixels = reference(96, 160)
    levels = ((pixels[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    theirs = VaeImageProcessor(vae_scale_factor=16).resize(Image.fromarray(levels), 48, 80)
    ours = own.half_size(pixels)
    assert ours.size == (80, 48)
    assert ImageChops.difference(ours, theirs).getbbox() is None
