"""Nodes for finished LoRAs: putting one on a model, and writing one in another layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.errors import LoraFileError
from ..training.files import state_of
from ..training.lora.families import LAYOUTS, PORTABLE
from ..training.lora.scale import PEFT_CONFIG
from ..training.paths import MOVE_OR_ALLOW, AllowedRoots, check_name
from ..training.weights.spec import LoraUse
from .host import current_host
from .types import LONGCAT_LORA, LONGCAT_MODEL, TrainedLora, Widget, socket, text

if TYPE_CHECKING:
    from ..training.loop.stages import Stages

NO_LORA = "none"


class LongCatLoadLoRA:
    """Puts a LoRA file on top of a model spec."""

    DISPLAY_NAME = "Load LongCat LoRA"
    DESCRIPTION = (
        "Adds a LoRA to the model; several can be chained. Files of other trainers are read as they are. It is applied"
        " when the model is loaded."
    )
    CATEGORY = "LongCat/model"
    FUNCTION = "load"
    RETURN_TYPES = (LONGCAT_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model with the LoRA on top.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model to add the LoRA to."),
                "lora_name": _lora_widget(),
                "strength": (
                    "FLOAT",
                    strength | {"tooltip": "How strongly the LoRA acts: 1 as trained, 0 not at all."},
                ),
            },
            "optional": {"lora": socket(LONGCAT_LORA, "The LoRA that TrainLoRA has just made; overrides lora_name.")},
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str = NO_LORA, **_others: Any) -> str:
        return _state_of(_find_lora(lora_name, cls.__name__))

    def load(self, model: Stages, lora_name: str, strength: float, lora: TrainedLora | None = None) -> tuple[Stages]:
        from ..training.lora.file import read_lora

        path = lora.path if lora is not None else _find_lora(lora_name, type(self).__name__)
        if path is None:
            return (model,)
        # Before the stages that follow load anything for it.
        read_lora(path)
        return (model.with_lora(LoraUse(path=path, strength=strength), made_here=lora is not None),)


class LongCatConvertLoRA:
    """Writes a LoRA in the layout that another program reads."""

    DISPLAY_NAME = "Convert LongCat LoRA"
    DESCRIPTION = (
        "Reads a LoRA of LongCat-Image or LongCat-Video in any known layout and writes it in the chosen one, with"
        " exactly the same effect, into models/loras. Nothing is overwritten: a number is added where the name is"
        " taken."
    )
    CATEGORY = "LongCat/model"
    FUNCTION = "convert"
    OUTPUT_NODE = True
    RETURN_TYPES = (LONGCAT_LORA, "STRING")
    RETURN_NAMES = ("lora", "path")
    OUTPUT_TOOLTIPS = ("The converted LoRA, for LongCatLoadLoRA.", "Where it was written.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layout = (
            "portable: as trained here. Of LongCat-Image: portable for ComfyUI, diffusers and SimpleTuner; peft: a"
            " folder with adapter_config.json; native: ComfyUI's own names; kohya: native names as kohya's scripts"
            " write them. Of LongCat-Video: official, wanvideowrapper and fastvideo for the programs of these names."
        )
        return {
            "required": {
                "lora_name": _lora_widget(),
                "layout": (list(LAYOUTS), {"default": PORTABLE, "tooltip": layout}),
                "output_name": text("Name below models/loras, without ending; empty: the LoRA's name and the layout."),
            },
            "optional": {"lora": socket(LONGCAT_LORA, "The LoRA that TrainLoRA has just made; overrides lora_name.")},
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str = NO_LORA, **_others: Any) -> str:
        return _state_of(_find_lora(lora_name, cls.__name__))

    def convert(self, lora_name: str, layout: str, output_name: str, lora: TrainedLora | None = None) -> dict[str, Any]:
        from ..training.lora.convert import convert_lora

        path = lora.path if lora is not None else _find_lora(lora_name, type(self).__name__)
        if path is None:
            raise LoraFileError(
                f"LongCatConvertLoRA.lora_name is {NO_LORA!r} and no lora is connected. Choose a file, or connect one."
            )
        name = output_name.strip().removesuffix(".safetensors") or f"{_name_of(path)}-{layout}"
        check_name("LongCatConvertLoRA.output_name", name)
        lora_dir = (lora.lora_dir if lora is not None else None) or current_host().lora_dirs()[0]
        written = convert_lora(path, layout, lora_dir / name)
        converted = TrainedLora(path=written, folder=written.parent, lora_dir=lora_dir)
        return {"ui": {"text": [str(written)]}, "result": (converted, str(written))}


def _lora_widget() -> Widget:
    tooltip = "A file below models/loras; not used when lora is connected."
    return [NO_LORA, *_lora_names()], {"default": NO_LORA, "tooltip": tooltip}


def _lora_names() -> list[str]:
    try:
        return current_host().lora_names()
    except ModuleNotFoundError:
        # No host: somebody reads the declaration alone, as documentation and tests do.
        return []


def _find_lora(name: str, node: str) -> Path | None:
    """The file called `name` below the LoRA folders; None for "none".

    Raises:
        LoraFileError: there is no such file, or it lies outside these folders, or is a link that leads out of the
            allowed ones.
    """
    if name == NO_LORA:
        return None
    folders = [folder.resolve() for folder in current_host().lora_dirs()]
    for folder in folders:
        path = folder / name
        # Not Path.is_file, which raises for names that are too long.
        if os.path.isfile(path) and ".." not in Path(name).parts and path.is_relative_to(folder):
            _refuse_links_out(path, folders, node)
            return path
    raise LoraFileError(
        f"{node}.lora_name is {name!r}; there is no such file below {', '.join(map(str, folders))}."
        " Choose one from the list (press R to read it again)."
    )


def _refuse_links_out(path: Path, folders: Sequence[Path], node: str) -> None:
    roots = current_host().data_roots().roots
    allowed = AllowedRoots(bases=tuple(folders), roots=None if roots is None else (*roots, *folders))
    for file in (path, path.with_name(PEFT_CONFIG)):
        if not allowed.contains(file):
            raise LoraFileError(
                f"{node}.lora_name is {path.name!r}, but {file} is a link that leads out of the allowed folders."
                f" {MOVE_OR_ALLOW}"
            )


def _state_of(path: Path | None) -> str:
    return str(state_of(path)) if path else ""


def _name_of(path: Path) -> str:
    """What people call the LoRA: peft's files all have one name, and the folder has the LoRA's."""
    return path.parent.name if path.stem == "adapter_model" else path.stem


NODES: dict[str, type] = {
    "LongCatLoadLoRA": LongCatLoadLoRA,
    "LongCatConvertLoRA": LongCatConvertLoRA,
}
