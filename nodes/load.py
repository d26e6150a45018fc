"""Nodes that say which model to work with. Nothing is loaded here: later stages load what they need."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..training.errors import LongCatError
from ..training.events import Callbacks, NoCallbacks
from ..training.files import state_of
from ..training.settings.model import ModelConfig
from ..training.weights.spec import ModelSpec
from .host import current_host
from .types import LONGCAT_MODEL, Widget, configured, widget, widgets

if TYPE_CHECKING:
    from ..training.loop.stages import Stages
    from ..training.weights.single_file import Kind

FILES: dict[str, Kind] = {"transformer_file": "transformer", "vae_file": "vae", "text_encoder_file": "text_encoder"}
"""Options that name a single file; offered are those that are there."""

OFFLOAD = ("blocks_to_swap", "enable_group_offload", "group_offload_type", "group_offload_blocks_per_group")


REHEARSAL = (
    "Try the whole graph first, in about a minute and without the model: on its tiny twin, with your own data and all"
    " stages, at 64 px and a few steps. TrainLoRA then reports what would fail at full size, and what the run needs."
    " Your real run, LoRA and caches are not touched."
)


class LoadLongCat:
    """Checks the choice; decides whether the model or its twin goes through the stages."""

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
            files = model_spec(ModelConfig(**choice), NoCallbacks()).files
        except LongCatError:
            # The node itself will say so.
            return ""
        paths = (files.transformer, files.vae, files.text_encoder) if files else ()
        return str([[str(path), *state_of(path)] for path in paths])

    def load(self, rehearsal: bool = False, unique_id: str | None = None, **settings: Any) -> tuple[Stages]:
        from ..training.loop.stages import RealStages

        config, host = configured(LoadLongCat, ModelConfig, settings), current_host()
        choose = functools.partial(model_spec, callbacks=host.callbacks(unique_id))
        if rehearsal:
            from ..training.rehearsal.stages import rehearsal_of

            return (rehearsal_of(config, choose, host.models_dirs(), host.cache_dir()),)
        return (RealStages(spec=choose(config)),)


def model_spec(config: ModelConfig, callbacks: Callbacks) -> ModelSpec:
    """The model that `config` chooses among the host's.

    Raises:
        ConfigError, ModelError, PathError: as `choose_model`; or a precision needs a package that is not installed.
    """
    from ..training.weights.choice import choose_model
    from ..training.weights.precisions import ensure_available

    for precision in (config.base_model_precision, config.text_encoder_1_precision):
        ensure_available(precision)
    host = current_host()
    return choose_model(config, host.models_dirs(), host.model_roots(), host.single_file_dirs(), callbacks)


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
