"""Nodes that say which model to work with. Nothing is loaded here: later stages load what they need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..training.errors import LongCatError
from ..training.settings.model import ModelConfig
from ..training.weights.spec import ModelSpec
from .host import current_host
from .types import LONGCAT_MODEL, Widget, configured, widget, widgets

if TYPE_CHECKING:
    from ..training.weights.single_file import Kind

FILES: dict[str, Kind] = {"transformer_file": "transformer", "vae_file": "vae", "text_encoder_file": "text_encoder"}
"""Options that name a single file; offered are those that are there."""

OFFLOAD = ("blocks_to_swap", "enable_group_offload", "group_offload_type", "group_offload_blocks_per_group")


REHEARSAL = (
    "Try the whole graph first, in about a minute and without the model: on its tiny twin, with your own data and all"
    " stages, at 64 px and a few steps. TrainLoRA then tells what would fail at full size, and what the run needs. Your"
    " real run, LoRA and caches are not touched."
)


class LoadLongCat:
    """Checks the choice and returns a spec."""

    DISPLAY_NAME = "Load LongCat"
    DESCRIPTION = (
        "Chooses a LongCat model. Weights are loaded by the nodes that need them, one part at a time, and leave memory"
        " afterwards."
    )
    CATEGORY = "LongCat/model"
    FUNCTION = "load"
    RETURN_TYPES = (LONGCAT_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model's settings, for encoding, caching, training and sampling.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = ("model_family", "model_flavour", "pretrained_model_name_or_path", "base_model_precision")
        return {
            "required": widgets(ModelConfig, *required),
            # Saved workflows hold widgets by place: new ones only at the end.
            "optional": widgets(ModelConfig, "text_encoder_1_precision", *OFFLOAD)
            | _file_widgets()
            | {"rehearsal": ("BOOLEAN", {"default": False, "tooltip": REHEARSAL})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, unique_id: str | None = None, rehearsal: bool = False, **choice: Any) -> str:
        try:
            # Files that have come or gone since may be another choice.
            files = _handle(ModelConfig(**choice), None).files
        except LongCatError:
            # The node itself will say so.
            return ""
        paths = (files.transformer, files.vae, files.text_encoder) if files else ()
        return " ".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)

    def load(self, rehearsal: bool = False, unique_id: str | None = None, **settings: Any) -> tuple[ModelSpec]:
        config = configured(LoadLongCat, ModelConfig, settings)
        return (_rehearsing(config, unique_id) if rehearsal else _handle(config, unique_id),)


def _handle(config: ModelConfig, node_id: str | None) -> ModelSpec:
    from ..training.weights.choice import choose_model
    from ..training.weights.quantisation import ensure_available

    for precision in (config.base_model_precision, config.text_encoder_1_precision):
        ensure_available(precision)
    host = current_host()
    return choose_model(
        config, host.models_dirs(), host.model_roots(), host.single_file_dirs(), host.callbacks(node_id)
    )


def _rehearsing(config: ModelConfig, node_id: str | None) -> ModelSpec:
    """The tiny twin of `config`, with what would fail where the real model is chosen."""
    from ..training.weights.quantisation import ensure_available
    from ..training.weights.spec import Rehearsal
    from .graph.tiny import tiny_config

    faults: dict[str, None] = {}
    real = ModelSpec(config=config, models_dirs=current_host().models_dirs())
    for precision in (config.base_model_precision, config.text_encoder_1_precision):
        try:
            ensure_available(precision)
        except LongCatError as error:
            faults[str(error)] = None
    if not faults:
        try:
            real = _handle(config, node_id)
        except LongCatError as error:
            faults[str(error)] = None
    twin = _handle(tiny_config("LoadLongCat", config), node_id)
    return replace(twin, rehearsal=Rehearsal(model=real, faults=tuple(faults)))


def _file_widgets() -> dict[str, Widget]:
    from ..training.weights.choice import AUTO, offered_files

    try:
        dirs = current_host().single_file_dirs()
    except ModuleNotFoundError:
        # No host: somebody reads the declaration alone, as documentation and tests do.
        return {name: ([AUTO], widget(ModelConfig, name)[1]) for name in FILES}
    return {name: ([AUTO, *offered_files(kind, dirs)], widget(ModelConfig, name)[1]) for name, kind in FILES.items()}


NODES: dict[str, type] = {
    "LoadLongCat": LoadLongCat,
}
