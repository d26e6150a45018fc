"""The video twin's tokenizer: of UMT5's kind (unigram pieces, bytes for unknown letters), whole words where known."""

from __future__ import annotations

import json
from pathlib import Path

from comfyui_longcat.training.tiny import captions

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

SPACE = "\u2581"
"""How sentencepiece writes a space."""


def pieces() -> list[tuple[str, float]]:
    """Piece and logarithm of its likelihood, in the order of the ids: words go before letters, letters before bytes.

    English words stand after a space, Chinese ones anywhere; letters of other scripts are bytes.
    """
    words = [*(SPACE + word for word in captions.english_words()), *captions.chinese_words()]
    letters = [SPACE, *(chr(code) for code in range(0x21, 0x7F))]
    return [
        *((piece, 0.0) for piece in (PAD, END, UNKNOWN)),
        *((f"<0x{byte:02X}>", -20.0) for byte in range(256)),
        *((letter, -10.0) for letter in letters),
        *((word, -5.0) for word in words),
    ]


def write_video_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteFallback, Fuse, Metaspace, Sequence
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace as SplitAtSpaces
    from tokenizers.processors import TemplateProcessing

    known = pieces()
    ids = {piece: number for number, (piece, _) in enumerate(known)}
    tokenizer = Tokenizer(Unigram(known, unk_id=ids[UNKNOWN], byte_fallback=True))
    tokenizer.pre_tokenizer = SplitAtSpaces()
    tokenizer.decoder = Sequence([ByteFallback(), Metaspace(), Fuse()])
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    tokenizer.add_special_tokens([PAD, END, UNKNOWN])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # newline: the files must be the same bytes on every system.
    for name, text in (
        ("tokenizer.json", tokenizer.to_str(pretty=True)),
        ("tokenizer_config.json", json.dumps(config)),
    ):
        (folder / name).write_text(f"{text}\n", encoding="utf-8", newline="\n")
