"""From a prompt, and for edits its reference picture, to prompt embeddings, as LongCat-Image was trained.

Not diffusers' pipelines: under transformers 5.3 and later these number the pads differently and silently lose the 3-D
positions of the reference, and they spoil prompts with two apostrophes.

Legend: L tokens of the whole sequence, H W pixel height and width, D embedding.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from ...data.media import from_pixels
from ...settings.geometry import PROMPT_SLOTS
from ..contract import TextEncoder

logger = logging.getLogger(__name__)

IMAGE_PAD = "<|image_pad|>"
VISION_START = "<|vision_start|>"

# The wording is part of the released weights (source: longcat_image/utils/model_utils.py of the official code).
TEXT_PREFIX = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content,"
    " suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
EDIT_PREFIX = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input image(s)."
    " Then, based on the user's editing instructions, clearly and precisely determine how to modify the given"
    " image(s), ensuring that only the specified parts are altered and all other aspects remain consistent with the"
    f" original(s).<|im_end|>\n<|im_start|>user\n{VISION_START}{IMAGE_PAD}<|vision_end|>"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"

# An apostrophe with a Latin letter on both sides (don't, cat's) is part of a word, never a quote mark.
_IN_WORD = r"(?<=[a-zA-Z])'(?=[a-zA-Z])"
_QUOTED = re.compile(
    "("
    rf"(?!{_IN_WORD})'(?:[^']|{_IN_WORD})*?(?!{_IN_WORD})'"
    '|"[^"]*?"'
    "|\u2018[^\u2018\u2019]*?\u2019"
    "|\u201c[^\u201c\u201d]*?\u201d"
    ")"
)


def split_quotes(prompt: str) -> list[tuple[str, bool]]:
    """The prompt in pieces, in order, each with whether it is a quotation (its marks included)."""
    pieces = _QUOTED.split(prompt)
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]


def whole_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of the prompt, however many; quotations one character at a time, to be spelt right.

    Control tokens in the prompt are read as plain text: a second image_pad would have no picture.
    """
    ids: list[int] = []
    for piece, quoted in split_quotes(prompt):
        for text in piece if quoted else [piece]:
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def tokenize_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """The first `PROMPT_SLOTS` of `whole_prompt`; says so when it cuts."""
    ids = whole_prompt(tokenizer, prompt)
    if len(ids) > PROMPT_SLOTS:
        logger.warning(
            "The prompt has %d tokens; the model reads %d, so its end is cut off: it begins %r. Shorten it.",
            len(ids),
            PROMPT_SLOTS,
            prompt[:60],
        )
    return ids[:PROMPT_SLOTS]


def build_sequence(tokenizer: Any, prompt: str, image_tokens: int) -> tuple[Tensor, Tensor]:
    """Prefix (with the picture's tokens), prompt, pads, suffix.

    Args:
        tokenizer: Qwen2.5's.
        prompt: any text.
        image_tokens: of the reference; 0: there is none, so the prompt describes a picture.

    Returns:
        input_ids: [L], L = prefix + 512 + suffix.
        attention_mask: [L], 0 for pads, else 1.
    """
    image_pad = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    prefix: list[int] = []
    template = EDIT_PREFIX if image_tokens else TEXT_PREFIX
    for token in tokenizer(template, add_special_tokens=False)["input_ids"]:
        prefix += [token] * (image_tokens if token == image_pad else 1)
    suffix = tokenizer(SUFFIX, add_special_tokens=False)["input_ids"]
    prompt_ids = tokenize_prompt(tokenizer, prompt)
    pads = PROMPT_SLOTS - len(prompt_ids)
    input_ids = [*prefix, *prompt_ids, *[tokenizer.pad_token_id] * pads, *suffix]
    attention_mask = [1] * (len(prefix) + len(prompt_ids)) + [0] * pads + [1] * len(suffix)
    return torch.tensor(input_ids), torch.tensor(attention_mask)


def position_ids(is_image: Tensor, attention_mask: Tensor, rows: int, columns: int) -> Tensor:
    """Positions (time, row, column) of every token, as transformers 4.57 (the official pin) computes them.

    Passed explicitly, because later versions drop them without a word when `mm_token_type_ids` is missing, and number
    the pads differently. A text token is at (c, c, c); the picture at (c, c + row, c + column); the text after it goes
    on behind the largest number used; every pad is at 1, so that all pads of a prompt get one and the same embedding.

    Args:
        is_image: [L] bool, rows * columns of them True, in one run; none without a picture.
        attention_mask: [L], 0 for pads.
        rows: of the picture after Qwen's 2x2 merge; 0 without one.
        columns: of the same.

    Returns:
        [3, 1, L], int64.
    """
    start = int(is_image.int().argmax())
    behind = attention_mask.bool().clone()
    behind[: start + rows * columns] = False
    positions = torch.ones(3, len(is_image), dtype=torch.long)
    positions[:, :start] = torch.arange(start)
    positions[0, is_image] = start
    positions[1, is_image] = start + torch.arange(rows).repeat_interleave(columns)
    positions[2, is_image] = start + torch.arange(columns).repeat(rows)
    positions[:, behind] = start + max(rows, columns) + torch.arange(int(behind.sum()))
    return positions.unsqueeze(1)


def half_size(reference: Tensor) -> Image:
    """pixels [1, 3, H, W] -> the picture at (W // 2, H // 2) that the vision encoder was trained to see.

    Lanczos, as diffusers' VaeImageProcessor resizes.
    """
    height, width = reference.shape[-2:]
    return from_pixels(reference).resize((width // 2, height // 2), Resampling.LANCZOS)


@torch.no_grad()
def encode_prompt(text_encoder: TextEncoder, prompt: str, reference: Tensor | None) -> Tensor:
    """Embeddings of `prompt`, about `reference` if there is one.

    Args:
        text_encoder: Qwen2.5-VL with its tokenizer and image processor.
        prompt: "" is legal (guidance, caption dropout): 512 pads, behind the same picture.
        reference: pixels [1, 3, H, W] in -1..1; None: text-to-image.

    Returns:
        prompt_embeds: the last layer after its norm, in the text encoder's dtype and on its device. Text-to-image: the
            prompt's slots, [1, 512, D]. With a reference from vision_start on, [1, 1 + vision tokens + 1 + 512, D].
    """
    tokenizer = text_encoder.tokenizer
    picture, rows, columns = _picture_inputs(text_encoder, reference)
    input_ids, attention_mask = build_sequence(tokenizer, prompt, rows * columns)
    is_image = input_ids == tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    device = text_encoder.model.device
    # The inner model spares the language head; its last_hidden_state is hidden_states[-1] of the whole.
    output = text_encoder.model.model(
        input_ids=input_ids.unsqueeze(0).to(device),
        attention_mask=attention_mask.unsqueeze(0).to(device),
        position_ids=position_ids(is_image, attention_mask, rows, columns).to(device),
        pixel_values=picture["pixel_values"].to(device) if picture else None,
        image_grid_thw=picture["image_grid_thw"].to(device) if picture else None,
        use_cache=False,
    )
    last = len(input_ids) - len(tokenizer(SUFFIX, add_special_tokens=False)["input_ids"])
    vision = 1 + rows * columns + 1 if picture else 0
    return output.last_hidden_state[:, last - PROMPT_SLOTS - vision : last].clone()


def _picture_inputs(text_encoder: TextEncoder, reference: Tensor | None) -> tuple[Any, int, int]:
    """What the vision encoder reads, and the rows and columns of tokens that it makes of it."""
    if reference is None:
        return None, 0, 0
    processor = text_encoder.image_processor
    picture = processor(images=[half_size(reference)], return_tensors="pt")
    _, rows, columns = (side // processor.merge_size for side in picture["image_grid_thw"][0].tolist())
    return picture, rows, columns
