"""Filling models with weights: as a whole, or block after block, so that one block at most is unquantised in memory.

What other libraries raise over a damaged file or folder leaves this room as a ModelError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import LongCatError, ModelError
from ..resources import is_out_of_memory
from .checkpoint_files import check_component, open_weights, weight_files
from .streaming import blocks_of, return_freed_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


Model = TypeVar("Model")

LONGEST_REASON = 400
"""Characters of a library's message that are passed on; torch lists every tensor, each on a line of its own."""


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
        raise misfit(source, f"{len(missing)} of the model's weights are missing, for example {missing[0]}")
    blocks = blocks_of(model)
    for part, inside in _by_part(there, blocks).items():
        with reading(source):
            weights = {name: read(name) for name in inside}
        for name, tensor in weights.items():
            if tuple(tensor.shape) != shapes[name]:
                raise misfit(source, f"{name} is {list(tensor.shape)} there and {list(shapes[name])} in the model")
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
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_weights(path)) for path in weight_files(component)]
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


def misfit(source: Path, reason: str) -> ModelError:
    """The error for weights and settings that cannot be of one model."""
    short = " ".join(reason.split())[:LONGEST_REASON].rstrip(".")
    return ModelError(
        f"{source} does not fit together: {short}. It is damaged or of another version: copy or download it again."
    )


@contextlib.contextmanager
def reading(source: Path) -> Iterator[None]:
    """Inside the block, a library makes a model, tokenizer or processor of what `source` says.

    Raises:
        ModelError: whatever the library raised, but for too little memory: over damaged files it is anything, and
            tokenizers raise Exception.
    """
    try:
        yield
    except LongCatError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise misfit(source, f"{type(error).__name__}: {error}") from error


def from_folder(model_class: type[Model], folder: Path, dtype: torch.dtype) -> Model:
    """A diffusers or transformers model, on the CPU.

    Raises:
        ModelError: damaged, of another version, some of its weights are missing, or it asks for code of its own.
    """
    from diffusers import ModelMixin

    check_component(folder)
    # diffusers knows no such choice: its classes never run a folder's code.
    trust = {} if issubclass(model_class, ModelMixin) else {"trust_remote_code": False}
    with reading(folder):
        model, report = model_class.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True, **trust
        )
    # The libraries fill what is missing with random numbers without an error.
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, for example {missing[0]}. Its files are of another"
            " model than its config.json: copy or download the model again."
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`.

    Raises:
        ModelError: damaged, or it asks for code of its own.
    """
    from transformers import AutoTokenizer

    check_component(folder)
    with reading(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
