"""Qwen2.5-VL, the text encoder of LongCat-Image, from ComfyUI's single file: names, and the config they imply.

The file has the names of the hub's first release (`model.layers.0...`, `visual.blocks.0...`), mostly without the
language head; transformers 4 and 5 both translate them to their own when they load.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .checkpoint_files import check_component
from .loading import misfit, reading
from .tensor_file import Shapes, what_it_holds

NEWER_NAMES = (
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
    ("model.lm_head.", "lm_head."),
)
"""Beginning of a name as transformers has it since 4.52, or as ComfyUI saves it -> in the hub's first release."""

LANGUAGE_HEAD = "lm_head.weight"

HEAD_DIM = 128
VISION_HEAD_DIM = 80
FULL_ATTENTION_EVERY = 8
LANGUAGE = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
    "max_position_embeddings": 128000,
}
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
"""Values that no tensor holds: equal in every size of Qwen2.5-VL (huggingface/transformers: models/qwen2_5_vl;
Comfy-Org/ComfyUI: comfy/text_encoders/llama.py Qwen25_7BVLI_Config, qwen_vl.py)."""

IMAGE_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 16384,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
"""Qwen2.5-VL's own values (huggingface/transformers: models/qwen2_vl/image_processing_qwen2_vl.py)."""

PARTS = {
    "embedding": "model.embed_tokens.weight",
    "query": "model.layers.0.self_attn.q_proj.weight",
    "key": "model.layers.0.self_attn.k_proj.weight",
    # Qwen2.5 has a bias here and no norm of the queries; Qwen3 has the norm and no bias.
    "key bias": "model.layers.0.self_attn.k_proj.bias",
    "feed-forward": "model.layers.0.mlp.gate_proj.weight",
    "vision": "visual.blocks.0.attn.proj.weight",
    # Qwen2-VL, the version before, has fc1 and fc2 instead.
    "vision feed-forward": "visual.blocks.0.mlp.gate_proj.weight",
    "vision output": "visual.merger.mlp.2.weight",
}


def text_encoder_names(shapes: Shapes) -> dict[str, str]:
    """Name in the hub's first release -> name in the file."""
    names = {}
    for in_file in shapes:
        newer, older = next(((n, o) for n, o in NEWER_NAMES if in_file.startswith(n)), ("", ""))
        names[older + in_file.removeprefix(newer)] = in_file
    return names


def text_encoder_config(names: Mapping[str, str], shapes: Shapes, path: Path) -> dict[str, Any]:
    """Arguments of transformers' Qwen2_5_VLConfig.

    Args:
        names: of `text_encoder_names`.
        shapes: by name in the file.

    Raises:
        ModelError: these are not the tensors of a Qwen2.5-VL with its vision tower.
    """
    missing = [name for name in PARTS.values() if name not in names]
    if missing:
        raise ModelError(
            f"{path} is no Qwen2.5-VL text encoder: it holds {what_it_holds(names)}, and no {missing[0]}. Choose a file"
            " such as qwen_2.5_vl_7b.safetensors or qwen_2.5_vl_7b_fp8_scaled.safetensors."
        )
    size = {part: shapes[names[name]] for part, name in PARTS.items()}
    for part, shape in size.items():
        if len(shape) != (1 if part == "key bias" else 2):
            raise misfit(path, f"{PARTS[part]} is {list(shape)}")
    heads = {"query": HEAD_DIM, "key": HEAD_DIM, "vision": VISION_HEAD_DIM}
    for part, rows in heads.items():
        if not size[part][0] or size[part][0] % rows:
            raise misfit(path, f"{PARTS[part]} has {size[part][0]} rows, which are no heads of {rows}")
    language_layers, vision_layers = _depth(names, r"model\.layers"), _depth(names, r"visual\.blocks")
    vision_width = size["vision"][0]
    # Prompt embeddings never pass the head: where the file has none, the word embedding stands in, at no cost.
    tied = LANGUAGE_HEAD not in names
    return {
        "text_config": {
            "vocab_size": size["embedding"][0],
            "hidden_size": size["embedding"][1],
            "intermediate_size": size["feed-forward"][0],
            "num_hidden_layers": language_layers,
            "num_attention_heads": size["query"][0] // HEAD_DIM,
            "num_key_value_heads": size["key"][0] // HEAD_DIM,
            **copy.deepcopy(LANGUAGE),  # transformers writes into what it is given
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "depth": vision_layers,
            "hidden_size": vision_width,
            "intermediate_size": size["vision feed-forward"][0],
            "num_heads": vision_width // VISION_HEAD_DIM,
            "out_hidden_size": size["vision output"][0],
            "fullatt_block_indexes": list(range(FULL_ATTENTION_EVERY - 1, vision_layers, FULL_ATTENTION_EVERY)),
        },
        "tie_word_embeddings": tied,
        **TOKENS,
    }


def image_processor(folder: Path | None = None) -> Any:
    """Qwen2.5-VL's image processor by the settings in `folder`, else by its own; works on PIL pictures, so that it
    needs no torchvision and gives the same result everywhere."""
    import transformers

    # transformers 5 calls it so; in transformers 4 the plain name is the one that works on PIL pictures.
    name = "Qwen2VLImageProcessorPil"
    processor_class = getattr(transformers, name if hasattr(transformers, name) else "Qwen2VLImageProcessor")
    if folder is not None:
        check_component(folder)
        with reading(folder):
            return processor_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return processor_class(**{name: value for name, value in IMAGE_PROCESSOR.items() if name != "image_processor_type"})


def _depth(names: Mapping[str, str], blocks: str) -> int:
    # The largest Qwen2.5-VL has 80; a damaged name must not ask for a million.
    numbers = [int(found[1]) for name in names if (found := re.match(rf"{blocks}\.([0-9]{{1,2}})\.", name))]
    return max(numbers, default=-1) + 1
