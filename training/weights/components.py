"""The parts of a model, each loaded when a stage asks for it and gone when the stage ends."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..events import Callbacks, StageProgress, WarningRaised
from ..models.contract import TextEncoder
from ..settings.model import QUANTISED_PRECISIONS, ModelConfig, flavour_of
from . import single_file, video_components
from .checkpoint_files import check_component
from .devices import choose_dtype
from .loading import Finish, fill, from_folder, load_tokenizer, misfit, reading, reading_folder
from .precisions import ensure_available, must_compile
from .quantisation import quantise
from .qwen_file import image_processor
from .source import resolve_folder
from .spec import ModelSpec
from .streaming import BlockSwap, blocks_of, enable_group_offload, streamed_blocks, uses_group_offload


@contextlib.contextmanager
def open_vae(spec: ModelSpec, device: torch.device, callbacks: Callbacks) -> Iterator[Any]:
    """The AutoencoderKL (LongCat-Video: AutoencoderKLWan) in float32, frozen, on `device` for the length of the block.

    Raises:
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    files = spec.files
    folder = None if files else resolve_folder(spec, callbacks)

    def load() -> nn.Module:
        from diffusers import AutoencoderKL

        if files:
            return single_file.load_vae(files.vae).to(device)
        if flavour_of(spec.config).draws_clips:
            return video_components.load_vae(folder).to(device)
        return from_folder(AutoencoderKL, folder / "vae", torch.float32).to(device)

    with _in_memory("VAE", load, device, callbacks) as vae:
        yield vae


@contextlib.contextmanager
def open_text_encoder(spec: ModelSpec, device: torch.device, callbacks: Callbacks) -> Iterator[TextEncoder]:
    """Text encoder, tokenizer and image processor, frozen, on `device` for the length of the block.

    Raises:
        ConfigError: a quantised precision whose package is missing, or that `device` cannot do.
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    precision = spec.config.text_encoder_1_precision
    dtype = _dtype_on(device, spec, precision, callbacks)
    files = spec.files
    folder = None if files else resolve_folder(spec, callbacks)

    sees = not flavour_of(spec.config).draws_clips

    def load() -> nn.Module:
        from transformers import Qwen2_5_VLForConditionalGeneration

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
            tokenizer=_tokenizer_of(model, files.tokenizer if files else folder / "tokenizer"),
            image_processor=image_processor(None if files else folder / "text_processor") if sees else None,
        )
        del model
        try:
            yield text_encoder
        finally:
            text_encoder.model = None


@contextlib.contextmanager
def open_base_transformer(
    spec: ModelSpec,
    device: torch.device,
    callbacks: Callbacks,
    adapt: Callable[[nn.Module], None],
    training: bool = False,
) -> Iterator[Any]:
    """The family's transformer in the spec's precision, frozen, on `device`.

    It is read block by block, and each block takes its final form before the next one is read: neither main memory nor
    the device ever holds more than the quantised model and one block of the full one.

    Args:
        spec: the model; says also whether blocks stream through the device, see streaming.py.
        device: where it computes.
        callbacks: get the loading, and a warning of what takes long or is not as asked for.
        adapt: puts adapters on the loaded model, before diffusers' group offload takes hold of its layers.
        training: whether backward passes will follow; decides how blocks are streamed.

    Raises:
        ConfigError: a quantised precision whose package is missing, or that `device` cannot do.
        ModelError: the folder is incomplete, damaged or of another model.
        StoppedByUserError: stopped while downloading.
    """
    config = spec.config
    dtype = _dtype_on(device, spec, config.base_model_precision, callbacks)
    files = spec.files
    folder = None if files else resolve_folder(spec, callbacks)
    swap = BlockSwap(device=device, resident=config.group_offload_blocks_per_group)
    finish = _finisher(config, device, swap, training)

    def load() -> nn.Module:
        if files:
            model = single_file.load_transformer(files.transformer, dtype, finish)
        elif flavour_of(config).draws_clips:
            model = video_components.load_transformer(folder, dtype, finish)
        else:
            model = _transformer_from_folder(folder / "transformer", dtype, finish)
        adapt(model)
        if uses_group_offload(config, training):
            enable_group_offload(model, config, device)
        return model

    try:
        with _in_memory("transformer", load, device, callbacks) as transformer:
            yield transformer
    finally:
        swap.release()


def compute_dtype(spec: ModelSpec) -> torch.dtype:
    """float32 for an fp32 base, else bfloat16, which quantised weights are expanded to as well."""
    return torch.float32 if spec.config.base_model_precision == "fp32" else torch.bfloat16


def _dtype_on(device: torch.device, spec: ModelSpec, precision: str, callbacks: Callbacks) -> torch.dtype:
    """What a part of `precision` computes in on `device`; warns of what takes long or is not as asked for."""
    ensure_available(precision)
    choose_dtype(device, precision)
    dtype, reason = choose_dtype(device, spec.config.base_model_precision)
    if dtype != compute_dtype(spec):
        callbacks.on_event(WarningRaised(message=f"{reason}."))
    if must_compile(precision, device.type):
        message = (
            f"{precision} compiles an extension at its first use, now: half a minute on a CPU, some on CUDA, once."
        )
        callbacks.on_event(WarningRaised(message=message))
    return dtype


def _finisher(config: ModelConfig, device: torch.device, swap: BlockSwap, training: bool) -> Finish:
    """What is done with each part of the transformer when it has been read."""
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


@contextlib.contextmanager
def _in_memory(
    name: str, load: Callable[[], nn.Module], device: torch.device, callbacks: Callbacks
) -> Iterator[nn.Module]:
    """Loads, and gives everything back at the end, also after an error."""
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


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """No bars of diffusers and transformers on the console inside the block: loading is reported as an event."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loud = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in loud:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in loud:
            library.enable_progress_bar()


def _drop_weights(model: nn.Module) -> None:
    """Takes the tensors out of the module: a reference to it left in a caller's frame or traceback costs nothing."""
    for module in model.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, None)
        for name, _ in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, None)


def _empty_cache(device: torch.device) -> None:
    gc.collect()
    backend = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "empty_cache"):
        backend.empty_cache()


def _transformer_from_folder(folder: Path, dtype: torch.dtype, finish: Finish) -> nn.Module:
    from diffusers import LongCatImageTransformer2DModel

    check_component(folder)
    with reading(folder), torch.device("meta"):
        model = LongCatImageTransformer2DModel.from_config(LongCatImageTransformer2DModel.load_config(folder))
    with reading_folder(folder, dtype) as (names, read):
        fill(model, names, read, finish, folder)
    return model


def _tokenizer_of(model: Any, folder: Path) -> Any:
    """The tokenizer in `folder`, checked against its text encoder, which would fail over the first token too many."""
    tokenizer = load_tokenizer(folder)
    words, highest = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values(), default=-1)
    if highest < 0 or highest >= words:
        raise misfit(folder, f"its tokens go up to number {highest}, its text encoder has {words} (from number 0)")
    return tokenizer
