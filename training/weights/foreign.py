"""Naming the model that a file holds when it is not the one wanted: the first thing a user needs to know."""

from __future__ import annotations

from collections.abc import Iterable

MARKS = (
    (".lora_", "a LoRA"),
    (".cross_attn.kv_linear.", "a LongCat-Video transformer"),
    ("double_stream_modulation_img.", "a Flux.2 transformer"),
    ("distilled_guidance_layer.", "a Chroma transformer"),
    ("txt_in.individual_token_refiner.", "a HunyuanVideo transformer"),
    ("vector_in.", "a Flux.1 transformer (it has vector_in)"),
    ("guidance_in.", "a Flux.1 transformer (it has guidance_in)"),
    ("time_text_embed.text_embedder.", "a Flux.1 transformer (it has time_text_embed.text_embedder)"),
    (".img_mod.1.", "a Qwen-Image transformer"),
    ("cap_embedder.", "a Z-Image or Lumina transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("input_blocks.", "a Stable Diffusion UNet"),
    ("head.modulation", "a Wan transformer"),
    ("encoder.downsamples.", "a Wan VAE"),
    (".deepstack_merger_list.", "a Qwen3-VL text encoder"),
    (".self_attn.q_norm.", "a Qwen3 or Gemma text encoder"),
    (".SelfAttention.", "a T5 text encoder"),
    ("text_model.encoder.", "a CLIP text encoder"),
)
"""Part of a tensor's name -> the model it gives away; the first that occurs counts."""


def what_it_holds(names: Iterable[str]) -> str:
    """The model that these tensor names belong to, else some of the names."""
    known = sorted(names)
    for mark, model in MARKS:
        if any(mark in f".{name}" for name in known):
            return model
    return f"tensors such as {', '.join(known[:3])}"
