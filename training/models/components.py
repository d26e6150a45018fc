"""The parts of a model, each loaded when a stage asks for it and gone when the stage ends."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ModelError
from ..loop.events import Callbacks, StageProgress
from ..quantisation import INT8_QUANTO, ensure_available, quantise
from . import single_file
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
    """Qwen2_5_VLForConditionalGeneration"""
    tokenizer: Any
    image_processor: Any
    """Qwen2VLImageProcessor, the one that works on PIL pictures: needs no torchvision, the same result everywhere."""


@contextlib.contextmanager
def open_vae(handle: ModelHandle, device: torch.device, callbacks: Callbacks) -> Iterator[Any]:
    """The AutoencoderKL in float32, frozen, on `device` for the length of the block.

    Raises:
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    files = handle.files
    folder = None if files else resolve_folder(handle, callbacks)

    def load() -> nn.Module:
        import torch
        from diffusers import AutoencoderKL

        if files:
            return single_file.load_vae(files.vae)
        return _from_folder(AutoencoderKL, folder / "vae", torch.float32)

    with _on_device("VAE", load, device, callbacks) as vae:
        yield vae


@contextlib.contextmanager
def open_text_encoder(handle: ModelHandle, device: torch.device, callbacks: Callbacks) -> Iterator[TextEncoder]:
    """Text encoder, tokenizer and image processor, frozen, on `device` for the length of the block.

    Raises:
        ConfigError: int8-quanto without optimum-quanto.
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    precision = handle.config.text_encoder_1_precision
    ensure_available(precision)
    files = handle.files
    folder = None if files else resolve_folder(handle, callbacks)

    def load() -> nn.Module:
        from transformers import Qwen2_5_VLForConditionalGeneration

        dtype = compute_dtype(handle)
        if files:
            model = single_file.load_text_encoder(files.text_encoder, dtype)
        else:
            model = _from_folder(Qwen2_5_VLForConditionalGeneration, folder / "text_encoder", dtype)
        if precision == INT8_QUANTO:
            quantise(model, precision)
        return model

    with _on_device("text encoder", load, device, callbacks) as model:
        text_encoder = TextEncoder(
            model=model,
            tokenizer=_tokenizer(files.tokenizer if files else folder / "tokenizer"),
            image_processor=image_processor(None if files else folder / "text_processor"),
        )
        del model
        try:
            yield text_encoder
        finally:
            text_encoder.model = None


@contextlib.contextmanager
def open_transformer(handle: ModelHandle, device: torch.device, callbacks: Callbacks) -> Iterator[Any]:
    """The LongCatImageTransformer2DModel in the handle's precision, frozen, with its LoRAs, on `device`.

    Raises:
        ConfigError: int8-quanto without optimum-quanto.
        ModelError: the folder is incomplete, damaged or of another model.
        LoraFileError: one of the handle's LoRAs cannot be read or does not fit.
        StoppedByUserError: stopped while downloading.
    """
    precision = handle.config.base_model_precision
    ensure_available(precision)
    files = handle.files
    folder = None if files else resolve_folder(handle, callbacks)

    def load() -> nn.Module:
        from diffusers import LongCatImageTransformer2DModel

        dtype = compute_dtype(handle)
        if files:
            model = single_file.load_transformer(files.transformer, dtype)
        else:
            model = _from_folder(LongCatImageTransformer2DModel, folder / "transformer", dtype)
        if precision == INT8_QUANTO:
            quantise(model, precision)
        _apply_loras(model, handle)
        return model

    with _on_device("transformer", load, device, callbacks) as transformer:
        yield transformer


def compute_dtype(handle: ModelHandle) -> torch.dtype:
    """float32 for an fp32 base, else bfloat16, which int8 weights are expanded to as well."""
    import torch

    return torch.float32 if handle.config.base_model_precision == "fp32" else torch.bfloat16


def _apply_loras(model: nn.Module, handle: ModelHandle) -> None:
    if not handle.loras:
        return
    from ..lora.file import apply_lora

    for number, use in enumerate(handle.loras):
        apply_lora(model, use.path, use.strength, f"lora_{number}")


@contextlib.contextmanager
def _on_device(
    name: str, load: Callable[[], nn.Module], device: torch.device, callbacks: Callbacks
) -> Iterator[nn.Module]:
    """Loads on the CPU, moves, and gives everything back at the end, also after an error."""
    import torch

    models: list[nn.Module] = []
    try:
        callbacks.on_event(StageProgress(stage=f"loading the {name}", done=0, total=1))
        # Parameters born in inference mode could never be trained on.
        with torch.inference_mode(False), torch.no_grad(), no_progress_bars():
            models.append(load())
            models[0].eval().requires_grad_(False).to(device)
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


def _from_folder(model_class: type[Model], folder: Path, dtype: torch.dtype) -> Model:
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


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
