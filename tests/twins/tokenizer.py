"""The twin's tokenizer: Qwen2's files and special tokens; bytes for letters, whole words where our texts use them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from comfyui_longcat.training.tiny import captions, edits

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

TEMPLATE_WORDS = (
    "As an image captioning expert, generate a descriptive text prompt based on an image content, suitable for input"
    " to a text-to-image model. editing first analyze the and attributes of image(s). Then, user's instructions,"
    " clearly precisely determine how to modify given ensuring that only specified parts are altered all other aspects"
    " remain consistent with original(s). system user assistant"
)
"""Of the prompt templates: the twin's prompts then have nearly as many tokens as the real ones."""

CHARACTER_WEIGHT = 1000
"""How often a Chinese character counts against a word, so that no merge starts in one and ends in the next."""


def words() -> list[str]:
    """Everything that is one token: words of the templates and of the drawn world, each with and without a space."""
    english = dict.fromkeys(
        [*re.findall(r"[A-Za-z]+", TEMPLATE_WORDS), *captions.english_words(), *edits.english_words()]
    )
    return [*english, *(f" {word}" for word in english), *captions.chinese_words(), *edits.CHINESE_WORDS]


def byte_level_merges() -> list[tuple[str, str]]:
    """BPE merges, in their order, that make each of `words` one token and cross no border between words."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    known = words()
    characters = sorted({character for word in known for character in word if not character.isascii()})
    texts = [*known, *(character for character in characters for _ in range(CHARACTER_WEIGHT))]
    tokenizer = Tokenizer(BPE())
    # Far more than there are, so that the trainer goes on until every word is whole.
    trainer = BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator((_letters_of_bytes(text) for text in texts), trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _letters_of_bytes(text: str) -> str:
    """The text as byte-level BPE sees it: a letter for each byte (openai/gpt-2: encoder.py bytes_to_unicode)."""
    from tokenizers.pre_tokenizers import ByteLevel

    ((letters, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return letters


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
