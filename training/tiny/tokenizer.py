"""The twin's tokenizer: Qwen2's files and special tokens; bytes for letters, whole words where our texts use them."""

from __future__ import annotations

import json
from pathlib import Path

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

SPACE = "\u0120"
"""How byte-level BPE writes a leading space (openai/gpt-2: encoder.py bytes_to_unicode)."""

WORDS = (
    # of the prompt templates
    "image captioning expert generate descriptive text prompt based content suitable for input to model editing first"
    " analyze the and attributes of then on user precisely determine how modify given ensuring that only specified"
    " parts are altered all other aspects remain consistent with original"
    # of drawn pictures and what is asked of them
    " make add remove move turn change draw put into a an in to left right top bottom middle background border frame"
    " circle square triangle star shape picture red green blue yellow purple orange white black grey pink"
).split()


def byte_level_merges() -> list[tuple[str, str]]:
    """BPE merges that grow each of `WORDS` letter by letter from its leading space, so that no merge crosses words."""
    merges = []
    for word in WORDS:
        start = SPACE
        for letter in word:
            merges.append((start, letter))
            start += letter
    return list(dict.fromkeys(merges))


def token_ids(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token to id: the 256 bytes, the merges, then the special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), *SPECIAL_TOKENS]
    return {token: number for number, token in enumerate(tokens)}


def write_tokenizer(folder: Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json, as the released folder has them."""
    merges = byte_level_merges()
    ids = token_ids(merges)
    plain = {token: number for token, number in ids.items() if token not in SPECIAL_TOKENS}
    added = {
        str(ids[token]): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "padding_side": "right",
        "model_max_length": 131072,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", json.dumps(plain, ensure_ascii=False))
    _write(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    # newline: the files must be the same bytes on every system.
    path.write_text(text, encoding="utf-8", newline="\n")
