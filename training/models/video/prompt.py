"""From a prompt to prompt embeddings, as LongCat-Video was trained.

The released model reads UMT5; a checkpoint whose text encoder is Qwen2.5-VL is read by that. The transformer attends to
all slots, unused ones as zeros, so a prompt always has all of them.

Legend: L tokens of the prompt, D embedding.
"""

from __future__ import annotations

import html
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ModelError
from ...settings.geometry import PROMPT_SLOTS
from ..contract import QWEN, UMT5, TextEncoder
from ..image.prompt import position_ids

logger = logging.getLogger(__name__)


def clean_prompt(prompt: str) -> str:
    """The prompt with broken encodings and HTML entities fixed, and single spaces only (official pipeline)."""
    import ftfy

    # Twice: texts from the web are often escaped twice.
    fixed = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(fixed.split())


@torch.no_grad()
def encode_prompt(text_encoder: TextEncoder, prompt: str) -> Tensor:
    """Embeddings of `prompt`.

    Args:
        text_encoder: UMT5 or Qwen2.5-VL with its tokenizer.
        prompt: "" is legal (guidance, caption dropout).

    Returns:
        prompt_embeds: [1, 512, D], the last layer after its norm, in the text encoder's dtype and on its device; the
            rows of unused slots are zeros, which is how they are known.

    Raises:
        ModelError: the text encoder is of another kind.
    """
    # Of the class: in transformers 4 a Qwen2.5-VL's own config gives the kind of its language model instead.
    kind = type(text_encoder.model.config).model_type
    if kind not in (UMT5, QWEN):
        raise ModelError(
            f"The text encoder is a {kind}; LongCat-Video reads prompts with {UMT5} (as released) or {QWEN}. Use the"
            " text encoder that came with the checkpoint."
        )
    tokenizer, model = text_encoder.tokenizer, text_encoder.model
    text = clean_prompt(prompt)
    # Only the prompt's own tokens are computed: they are the same with and without masked padding.
    embeds = _read_umt5(model, tokenizer, text) if kind == UMT5 else _read_qwen(model, tokenizer, text)
    return F.pad(embeds, (0, 0, 0, PROMPT_SLOTS - embeds.shape[1]))


def fill_slots(prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Brings embeddings of any length to all slots, and finds the unused ones.

    ComfyUI's own text encoder for Wan, which is the same UMT5, also zeroes unused slots, but has more for long prompts.

    Args:
        prompt_embeds: [B, L, D], rows of unused slots are zeros.

    Returns:
        prompt_embeds: [B, 512, D]
        mask: [B, 512] bool, False for unused slots.
    """
    prompt_embeds = prompt_embeds[:, :PROMPT_SLOTS]
    prompt_embeds = F.pad(prompt_embeds, (0, 0, 0, PROMPT_SLOTS - prompt_embeds.shape[1]))
    return prompt_embeds, (prompt_embeds != 0).any(dim=-1)


def _read_umt5(model: Any, tokenizer: Any, text: str) -> Tensor:
    """[1, L, D]; the end token is part of the prompt, also of an empty or shortened one."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) > PROMPT_SLOTS:
        _warn_of_length(text, len(ids))
        ids = [*ids[: PROMPT_SLOTS - 1], tokenizer.eos_token_id]
    input_ids = torch.tensor([ids], device=model.device)
    return model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state


def _read_qwen(model: Any, tokenizer: Any, text: str) -> Tensor:
    """[1, L, D]; without a template. An empty prompt is one end token, as there has to be something to read."""
    # Control tokens in the prompt are plain text: an image_pad would have no picture.
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if len(ids) > PROMPT_SLOTS:
        _warn_of_length(text, len(ids))
    input_ids = torch.tensor([ids[:PROMPT_SLOTS] or [tokenizer.eos_token_id]], device=model.device)
    attention_mask = torch.ones_like(input_ids)
    positions = position_ids(torch.zeros_like(input_ids[0], dtype=torch.bool), attention_mask[0], 0, 0)
    # The inner model spares the language head; its last_hidden_state is hidden_states[-1] of the whole.
    output = model.model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=positions.to(model.device), use_cache=False
    )
    return output.last_hidden_state


def _warn_of_length(text: str, tokens: int) -> None:
    logger.warning(
        "The prompt has %d tokens; the model reads %d, so its end is cut off: it begins %r. Shorten it.",
        tokens,
        PROMPT_SLOTS,
        text[:60],
    )
