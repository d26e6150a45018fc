"""Streaming frozen blocks: they live in main memory and come onto the device one after another, as they are needed.

diffusers' group offload serves sampling only: under autograd it reads weights that are away (leaf level, or without
checkpointing), or keeps all of them after the first backward pass.
"""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..settings.model import QUANTISED_PRECISIONS, ModelConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated parts of a model by name, in the order of its forward pass: the items of its outermost lists."""
    from torch import nn

    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(parent), nn.ModuleList) or name == parent:
            continue
        if not any(name.startswith(f"{block}.") for block in blocks):
            blocks[name] = module
    return blocks


def streamed_blocks(config: ModelConfig, training: bool) -> float:
    """How many blocks `BlockSwap` streams, at most: the first ones, which in LongCat-Image are the largest."""
    if uses_group_offload(config, training):
        return 0
    if config.enable_group_offload and config.blocks_to_swap == 0:
        return math.inf
    return config.blocks_to_swap


def uses_group_offload(config: ModelConfig, training: bool) -> bool:
    """Whether diffusers' group offload does the streaming; it cannot move optimum-quanto's weights between devices."""
    return config.enable_group_offload and not training and config.base_model_precision not in QUANTISED_PRECISIONS


def check_streaming(config: ModelConfig, gradient_checkpointing: bool) -> None:
    """Refuses to train with streamed blocks whose activations are kept: autograd would keep the weights with them.

    Raises:
        ConfigError: naming both settings.
    """
    if (config.blocks_to_swap or config.enable_group_offload) and not gradient_checkpointing:
        raise ConfigError(
            f"blocks_to_swap is {config.blocks_to_swap} and enable_group_offload {config.enable_group_offload}, but"
            " gradient_checkpointing is off: then the backward pass needs the weights of all blocks at once. Switch"
            " gradient_checkpointing on, or the streaming of blocks off."
        )


def enable_group_offload(model: Any, config: ModelConfig, device: torch.device) -> None:
    """diffusers' group offload, for sampling; on CUDA the next group is fetched on a stream of its own."""
    import torch

    model.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=config.group_offload_type,
        num_blocks_per_group=config.group_offload_blocks_per_group,
        use_stream=device.type == "cuda",
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters take, quantised ones as they are stored."""
    tensors = [slot.tensor for parameter in model.parameters() for slot in _slots(parameter)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def return_freed_memory() -> None:
    """Makes glibc give freed memory back to the system; other systems' allocators do so by themselves.

    It keeps freed pieces of up to 32 MB otherwise, and the smaller quantised weights that come into these holes then
    hold them open: loading a model in int8 took nearly three times its size (tests/benchmarks/loading.py).
    """
    import ctypes

    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@dataclass(frozen=True)
class _Slot:
    """A place that holds a plain tensor: a parameter's data, or an attribute of a quantised weight."""

    owner: Any
    name: str

    @property
    def tensor(self) -> Tensor:
        return getattr(self.owner, self.name)

    def put(self, tensor: Tensor) -> None:
        setattr(self.owner, self.name, tensor)


@dataclass(kw_only=True)
class _Streamed:
    """One block's frozen weights."""

    slots: list[_Slot]
    absent: list[Tensor]
    """What is in the slots while the weights are away: NaN, so that a wrong read can never go unnoticed."""
    away: list[Tensor]
    """The weights in main memory, on CUDA in pinned pages."""
    arrived: Any = None
    """CUDA event after the copy onto the device; None elsewhere, and while the weights are away."""


@dataclass(kw_only=True)
class BlockSwap:
    """Brings each block onto `device` before it computes, and lets go of the one used longest ago.

    Under gradient checkpointing the backward pass recomputes the blocks in reverse, each just before its own backward,
    and is done with one before it begins the next: so `resident` blocks are enough in both directions. On CUDA the
    next block is copied on a stream of its own meanwhile, which makes it one more. (Not yet measured on a GPU.)

    Blocks are added in the order of the forward pass; adapters that are added to them later stay on the device.
    """

    device: torch.device
    resident: int = 1
    _blocks: list[_Streamed] = field(default_factory=list)
    _here: list[int] = field(default_factory=list)
    """Numbers of the blocks on the device, longest unused first."""
    _hooks: list[Any] = field(default_factory=list)
    _last: int = -1
    _stream: Any = None

    def __post_init__(self) -> None:
        import torch

        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: nn.Module) -> None:
        """Takes the weights of `block`, which is on the device and frozen, into main memory."""
        slots = [slot for parameter in block.parameters() for slot in _slots(parameter)]
        away = [_in_main_memory(slot.tensor, pinned=self._stream is not None) for slot in slots]
        absent = [_absent(slot.tensor) for slot in slots]
        streamed = _Streamed(slots=slots, away=away, absent=absent)
        _fill(slots, absent)
        number = len(self._blocks)
        self._blocks.append(streamed)
        self._hooks.append(block.register_forward_pre_hook(lambda *_: self._use(number)))

    def release(self) -> None:
        """Gives all copies back; the blocks cannot compute any more."""
        for hook in self._hooks:
            hook.remove()
        for streamed in self._blocks:
            _fill(streamed.slots, streamed.absent)
        self._blocks.clear()
        self._here.clear()
        self._hooks.clear()

    def _use(self, number: int) -> None:
        import torch

        direction = 1 if number > self._last else -1
        self._last = number
        self._fetch(number)
        if self._stream is None:
            return
        torch.cuda.current_stream(self.device).wait_event(self._blocks[number].arrived)
        following = number + direction
        if 0 <= following < len(self._blocks):
            self._fetch(following)

    def _fetch(self, number: int) -> None:
        """Makes `number` the block used last; starts to copy it if it is away."""
        if number in self._here:
            self._here.remove(number)
        else:
            while len(self._here) >= self.resident + (self._stream is not None):
                self._send_away(self._here.pop(0))
            self._bring(self._blocks[number])
        self._here.append(number)

    def _send_away(self, number: int) -> None:
        streamed = self._blocks[number]
        _fill(streamed.slots, streamed.absent)
        streamed.arrived = None

    def _bring(self, streamed: _Streamed) -> None:
        import torch

        # The copies are weights: born in inference mode they could not take part in a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            if self._stream is None:
                tensors = [tensor.to(self.device, copy=True) for tensor in streamed.away]
            else:
                # The memory of a block just sent away may still be read by work that waits in the main stream.
                self._stream.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(self._stream):
                    tensors = [tensor.to(self.device, non_blocking=True) for tensor in streamed.away]
                streamed.arrived = self._stream.record_event()
        _fill(streamed.slots, tensors)


def _slots(tensor: Tensor) -> list[_Slot]:
    """Where the plain tensors of a parameter are; quantised weights are wrappers around some, at any depth."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not is_traceable_wrapper_subclass(tensor):
        return [_Slot(tensor, "data")]
    slots = []
    for name in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, name)
        slots += _slots(inner) if is_traceable_wrapper_subclass(inner) else [_Slot(tensor, name)]
    return slots


def _fill(slots: list[_Slot], tensors: list[Tensor]) -> None:
    for slot, tensor in zip(slots, tensors, strict=True):
        slot.put(tensor)


def _in_main_memory(tensor: Tensor, pinned: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.pin_memory() if pinned else tensor


def _absent(tensor: Tensor) -> Tensor:
    """One number on the tensor's device that looks like all of it, so that device, dtype and shape stay true."""
    import torch

    value = torch.zeros((), dtype=torch.float32, device=tensor.device)
    if tensor.is_floating_point():
        value.fill_(math.nan)
    return value.to(tensor.dtype).expand(tensor.shape)
