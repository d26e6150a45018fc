"""One safetensors file: what its header says, and its tensors one at a time, fp8 ones as the numbers they stand for.

ComfyUI's quantised files keep a weight in fp8 and one factor beside it: `<layer>.scale_weight` in older files, marked
by a tensor `scaled_fp8`; `<layer>.weight_scale` in newer ones, marked by `<layer>.comfy_quant` or by the metadata
(Comfy-Org/ComfyUI: comfy/utils.py convert_old_quants, comfy/ops.py, QUANTIZATION.md).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .checkpoint_files import FLOATS, open_weights, read_header

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name to shape."""

WEIGHT_SCALES = (".weight_scale", ".scale_weight")
MARKERS = ("scaled_fp8", ".comfy_quant", ".input_scale", ".scale_input")
"""Tensors that say how to compute fast; the weights themselves do not depend on them."""

FP8 = ("F8_E4M3", "F8_E5M2")

MODEL_MARKS = (
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


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """The header of a safetensors file; scales and markers of quantisation are taken out of the names."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """As the header writes them: BF16, F8_E4M3, ..."""
    scales: dict[str, str]
    """Name of a weight -> name of its scale."""

    @property
    def precision(self) -> str:
        """The dtype that most of the numbers are stored in, for people to read; "fp8_scaled" with scales."""
        if self.scales:
            return "fp8_scaled"
        sizes: dict[str, int] = {}
        for name, dtype in self.dtypes.items():
            sizes[dtype] = sizes.get(dtype, 0) + _count(self.shapes[name])
        return max(sizes, key=sizes.__getitem__).lower()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], Tensor]]:
        """Yields a function from a tensor's name to the tensor, dequantised to float32 where it has a scale.

        Others come as they are stored and may share memory with the file: copy what outlives the block.

        Raises:
            ModelError: the file is not as it was when its header was read.
        """
        with open_weights(self.path) as file:
            # The parts of a fused weight are asked for one after another.
            @functools.lru_cache(maxsize=1)
            def read(name: str) -> Tensor:
                tensor = file.get_tensor(name)
                if name in self.scales:
                    tensor = tensor.float() * file.get_tensor(self.scales[name]).float()
                return tensor

            yield read


def read_tensor_file(path: Path) -> TensorFile:
    """Reads the header of `path`, no tensors.

    Raises:
        ModelError: no safetensors file, truncated, or quantised in a way that is not read here.
    """
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path} is no .safetensors file; others (.gguf, .ckpt, .pt) are not read. Choose one that is."
        )
    header = read_header(path)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    dtypes = {name: entry["dtype"] for name, entry in header.items()}
    scales = _scales(path, shapes, dtypes)
    aside = {*scales.values(), *(name for name in shapes if name.endswith(MARKERS))}
    names = [name for name in shapes if name not in aside]
    unread = sorted({dtypes[name][:20] for name in names} - set(FLOATS))
    if unread or not names:
        raise ModelError(
            f"{path} holds {'tensors of type ' + ', '.join(unread[:5]) if unread else 'no weights'}; read are"
            f" {', '.join(FLOATS)}. Choose a bf16 or fp8_scaled file of the model."
        )
    return TensorFile(
        path=path,
        shapes={name: shapes[name] for name in names},
        dtypes={name: dtypes[name] for name in names},
        scales=scales,
    )


def what_it_holds(names: Iterable[str]) -> str:
    """The model that these tensor names belong to, else some of the names."""
    known = sorted(names)
    for mark, model in MODEL_MARKS:
        if any(mark in f".{name}" for name in known):
            return model
    return f"tensors such as {', '.join(name[:100] for name in known[:3])}"


def _scales(path: Path, shapes: Shapes, dtypes: Mapping[str, str]) -> dict[str, str]:
    scales = {}
    for name, shape in shapes.items():
        ending = next((ending for ending in WEIGHT_SCALES if name.endswith(ending)), None)
        if ending is None:
            continue
        weight = f"{name.removesuffix(ending)}.weight"
        # Block formats (mxfp8, nvfp4) and int8 have tables of scales, or keep the weights in another type.
        if dtypes.get(weight) not in FP8 or dtypes[name] not in FLOATS or _count(shape) != 1:
            raise ModelError(
                f"{path} is quantised in a way that is not read here: {weight} is {dtypes.get(weight, 'missing')}, its"
                f" scale {dtypes[name]} {list(shape)}; read is fp8 with one scale a weight. Choose a bf16 or fp8_scaled"
                " file of the model."
            )
        scales[weight] = name
    return scales


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
