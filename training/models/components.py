"""The parts of a model, each loaded when a stage asks for it and gone when the stage ends."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import QUANTISED_PRECISIONS, ModelConfig
from ..devices import choose_dtype
from ..errors import ModelError
from ..loop.events import Callbacks, StageProgress, WarningRaised
from ..memory import BlockSwap, blocks_of, enable_group_offload, streamed_blocks, uses_group_offload
from ..quantisation import ensure_available, must_compile, quantise
from . import single_file
from .block_loading import Finish, fill, reading_folder
from .family import flavour_of
from .handle import ModelHandle
from .quiet import no_progress_bars
from .qwen_file import image_processor
from .source import resolve_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

Model = TypeVar("Model")


@dataclass(kw_only=True)
class TextEncoder:
    """What turns an instruction and its reference into embeddings."""

    model: Any
    """Qwen2_5_VLForConditionalGeneration; for LongCat-Video UMT5EncoderModel or that"""
    tokenizer: Any
    image_processor: Any
    """None for LongCat-Video, whose prompts see no picture.

    Qwen2VLImageProcessor, the one that works on PIL pictures: needs no torchvision, the same result everywhere."""


@contextlib.contextmanager
def open_vae(handle: ModelHandle, device: torch.device, callbacks: Callbacks) -> Iterator[Any]:
    """The AutoencoderKL (LongCat-Video: AutoencoderKLWan) in float32, frozen, on `device` for the length of the block.

    Raises:
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    files = handle.files
    folder = None if files else resolve_folder(handle, callbacks)

    def load() -> nn.Module:
        import torch
        from diffusers import AutoencoderKL

        from . import video_components

        if files:
            return single_file.load_vae(files.vae).to(device)
        if flavour_of(handle.config).draws_clips:
            return video_components.load_vae(folder).to(device)
        return from_folder(AutoencoderKL, folder / "vae", torch.float32).to(device)

    with _in_memory("VAE", load, device, callbacks) as vae:
        yield vae


@contextlib.contextmanager
def open_text_encoder(handle: ModelHandle, device: torch.device, callbacks: Callbacks) -> Iterator[TextEncoder]:
    """Text encoder, tokenizer and image processor, frozen, on `device` for the length of the block.

    Raises:
        ConfigError: a quantised precision whose package is missing, or that `device` cannot do.
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    precision = handle.config.text_encoder_1_precision
    dtype = _dtype_on(device, handle, precision, callbacks)
    files = handle.files
    folder = None if files else resolve_folder(handle, callbacks)

    sees = not flavour_of(handle.config).draws_clips

    def load() -> nn.Module:
        from transformers import Qwen2_5_VLForConditionalGeneration

        from . import video_components

        if files:
            model = single_file.load_text_encoder(files.text_encoder, dtype)
        elif not sees:
            model = video_components.load_text_encoder(folder, dtype)
        else:
            model = from_folder(Qwen2_5_VLForConditionalGeneration, folder / "text_encoder", dtype)
        for name, block in blocks_of(model).items():
            _place(block, name, device, precision)
        return model.to(device)

    with _in_memory("text encoder", load, device, callbacks) as model:
        text_encoder = TextEncoder(
            model=model,
            tokenizer=_tokenizer(files.tokenizer if files else folder / "tokenizer"),
            image_processor=image_processor(None if files else folder / "text_processor") if sees else None,
        )
        del model
        try:
            yield text_encoder
        finally:
            text_encoder.model = None


@contextlib.contextmanager
def open_transformer(
    handle: ModelHandle, device: torch.device, callbacks: Callbacks, training: bool = False
) -> Iterator[Any]:
    """The family's transformer in the handle's precision, frozen, with its LoRAs, on `device`.

    It is read block by block, and each block takes its final form before the next one is read: neither main memory nor
    the device ever holds more than the quantised model and one block of the full one.

    Args:
        handle: the model; says also whether blocks stream through the device, see memory.py.
        device: where it computes.
        callbacks: told of the loading, and of what takes long or is not as asked for.
        training: whether backward passes will follow; decides how blocks are streamed.

    Raises:
        ConfigError: a quantised precision whose package is missing, or that `device` cannot do.
        ModelError: the folder is incomplete, damaged or of another model.
        LoraFileError: one of the handle's LoRAs cannot be read or does not fit.
        StoppedByUserError: stopped while downloading.
    """
    config = handle.config
    dtype = _dtype_on(device, handle, config.base_model_precision, callbacks)
    files = handle.files
    folder = None if files else resolve_folder(handle, callbacks)
    swap = BlockSwap(device=device, resident=config.group_offload_blocks_per_group)
    finish = _finisher(config, device, swap, training)

    def load() -> nn.Module:
        from . import video_components

        if files:
            model = single_file.load_transformer(files.transformer, dtype, finish)
        elif flavour_of(config).draws_clips:
            model = video_components.load_transformer(folder, dtype, finish)
        else:
            model = _transformer_from_folder(folder / "transformer", dtype, finish)
        _apply_loras(model, handle)
        if uses_group_offload(config, training):
            enable_group_offload(model, config, device)
        return model

    try:
        with _in_memory("transformer", load, device, callbacks) as transformer:
            yield transformer
    finally:
        swap.release()


def compute_dtype(handle: ModelHandle) -> torch.dtype:
    """float32 for an fp32 base, else bfloat16, which quantised weights are expanded to as well."""
    import torch

    return torch.float32 if handle.config.base_model_precision == "fp32" else torch.bfloat16


def _dtype_on(device: torch.device, handle: ModelHandle, precision: str, callbacks: Callbacks) -> torch.dtype:
    """What a part of `precision` computes in on `device`; tells of what takes long or is not as asked for."""
    ensure_available(precision)
    choose_dtype(device, precision)
    dtype, reason = choose_dtype(device, handle.config.base_model_precision)
    if dtype != compute_dtype(handle):
        callbacks.on_event(WarningRaised(message=f"{reason}."))
    if must_compile(precision, device.type):
        message = (
            f"{precision} compiles an extension at its first use, now: half a minute on a CPU, some on CUDA, once."
        )
        callbacks.on_event(WarningRaised(message=message))
    return dtype


def _finisher(config: ModelConfig, device: torch.device, swap: BlockSwap, training: bool) -> Finish:
    """What is done with each part of the transformer when it has been read."""
    import torch

    place = torch.device("cpu") if uses_group_offload(config, training) else device
    streamed = streamed_blocks(config, training)

    def finish(part: nn.Module, name: str, is_block: bool) -> None:
        _place(part, name, place, config.base_model_precision)
        if is_block and len(swap) < streamed:
            swap.add(part)

    return finish


def _place(part: nn.Module, name: str, device: torch.device, precision: str) -> None:
    """Quantised where it will compute: 4-bit weights have a layout of their own on each kind of device."""
    part.requires_grad_(False).to(device)
    if precision in QUANTISED_PRECISIONS:
        quantise(part, precision, name)


def _apply_loras(model: nn.Module, handle: ModelHandle) -> None:
    if not handle.loras:
        return
    from ..lora.file import apply_lora

    for number, use in enumerate(handle.loras):
        apply_lora(model, use.path, use.strength, f"lora_{number}")


@contextlib.contextmanager
def _in_memory(
    name: str, load: Callable[[], nn.Module], device: torch.device, callbacks: Callbacks
) -> Iterator[nn.Module]:
    """Loads, and gives everything back at the end, also after an error."""
    import torch

    models: list[nn.Module] = []
    try:
        callbacks.on_event(StageProgress(stage=f"loading the {name}", done=0, total=1))
        # Parameters born in inference mode could never be trained on.
        with torch.inference_mode(False), torch.no_grad(), no_progress_bars():
            models.append(load())
            models[0].eval().requires_grad_(False)
        callbacks.on_event(StageProgress(stage=f"loading the {name}", done=1, total=1))
        yield models[0]
    finally:
        for model in models:
            _drop_weights(model)
        models.clear()
        _empty_cache(device)


def _drop_weights(model: nn.Module) -> None:
    """Takes the tensors out of the module: a reference to it left in a caller's frame or traceback costs nothing."""
    for module in model.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, None)
        for name, _ in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, None)


def _empty_cache(device: torch.device) -> None:
    import torch

    gc.collect()
    backend = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "empty_cache"):
        backend.empty_cache()


def from_folder(model_class: type[Model], folder: Path, dtype: torch.dtype) -> Model:
    """A diffusers or transformers model, on the CPU.

    Raises:
        ModelError: damaged, of another version, or some of its weights are missing.
    """
    from safetensors import SafetensorError

    try:
        model, report = model_class.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{folder} could not be loaded: {error}. Its files are damaged or of another version: copy or download the"
            " model again."
        ) from error
    # The libraries fill what is missing with random numbers and go on.
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, for example {missing[0]}. Its files are of another"
            " model than its config.json: copy or download the model again."
        )
    return model


def _transformer_from_folder(folder: Path, dtype: torch.dtype, finish: Finish) -> nn.Module:
    import torch
    from diffusers import LongCatImageTransformer2DModel

    with torch.device("meta"):
        model = LongCatImageTransformer2DModel.from_config(LongCatImageTransformer2DModel.load_config(folder))
    with reading_folder(folder, dtype) as (names, read):
        fill(model, names, read, finish, folder)
    return model


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
