"""Filling models with weights: as a whole, or block after block, so that one block at most is unquantised in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import ModelError
from .checkpoint_files import weight_files
from .streaming import blocks_of, return_freed_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


Model = TypeVar("Model")


class Finish(Protocol):
    """What is done with each part of a model as soon as it is filled: moved, quantised, sent away."""

    def __call__(self, part: nn.Module, name: str, is_block: bool) -> None: ...


def fill(
    model: nn.Module, names: Iterable[str], read: Callable[[str], Tensor], finish: Finish | None, source: Path
) -> None:
    """Gives `model`, made on the meta device, its weights: block after block, layer after layer outside of them.

    Args:
        names: of the model's tensors that can be read; more than the model has is no fault, less is.
        read: from a name to the tensor, in memory of its own and in the dtype wanted.
        finish: called for each block, in the order of the forward pass, and for each layer outside of the blocks.
        source: where the weights come from, for messages.

    Raises:
        ModelError: tensors are missing or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # In the file's order: the parts of a fused weight are best read one after another.
    there = [name for name in names if name in shapes]
    missing = sorted(shapes.keys() - set(there))
    if missing:
        raise _misfit(source, f"{len(missing)} of the model's weights are missing, for example {missing[0]}")
    blocks = blocks_of(model)
    for part, inside in _by_part(there, blocks).items():
        weights = {name: read(name) for name in inside}
        for name, tensor in weights.items():
            if tuple(tensor.shape) != shapes[name]:
                raise _misfit(source, f"{name} is {list(tensor.shape)} there and {list(shapes[name])} in the model")
        module = model.get_submodule(part)
        module.load_state_dict({name.removeprefix(f"{part}."): t for name, t in weights.items()}, assign=True)
        del weights
        if finish is not None:
            finish(module, part, part in blocks)
        return_freed_memory()


@contextlib.contextmanager
def reading_folder(component: Path, dtype: torch.dtype) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Yields the tensor names of a component's folder, and a function that reads one of them in `dtype`.

    Raises:
        ModelError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(path, "pt")) for path in weight_files(component)]
        except (OSError, SafetensorError) as error:
            raise _misfit(component, str(error)) from error
        file_of = {name: file for file in files for name in file.keys()}
        yield list(file_of), lambda name: file_of[name].get_tensor(name).to(dtype, copy=True)


def _by_part(names: Iterable[str], blocks: Iterable[str]) -> dict[str, list[str]]:
    """Block to its tensors, in the model's order; a tensor outside of the blocks goes with the layer it belongs to."""
    parts: dict[str, list[str]] = {block: [] for block in blocks}
    for name in names:
        owner = name.rpartition(".")[0]
        part = next((block for block in parts if name.startswith(f"{block}.")), owner)
        parts.setdefault(part, []).append(name)
    return parts


def _misfit(source: Path, reason: str) -> ModelError:
    return ModelError(
        f"{source} does not fit together: {reason}. It is damaged or of another version: copy or download it again."
    )


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
    # The libraries fill what is missing with random numbers without an error.
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, for example {missing[0]}. Its files are of another"
            " model than its config.json: copy or download the model again."
        )
    return model
