"""Nodes that train: validation settings, rarely changed options, and TrainLoRA itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..training.settings.run import TrainConfig, TrainingOptions
from ..training.settings.validation import ValidationConfig
from .host import current_host
from .types import (
    LONGCAT_CACHE,
    LONGCAT_LORA,
    LONGCAT_MODEL,
    LONGCAT_OPTIONS,
    LONGCAT_VALIDATION,
    TrainedLora,
    ValidationPlan,
    configured,
    own_check,
    socket,
    widgets,
)

if TYPE_CHECKING:
    from ..training.caches.cache import Cache
    from ..training.loop.stages import Stages
    from ..training.loop.train import RunPlaces, TrainResult


class LongCatValidation:
    """How TrainLoRA samples while it trains."""

    DISPLAY_NAME = "LongCat Validation"
    DESCRIPTION = (
        "Lets TrainLoRA draw pictures or clips every few steps, and once before the first one: you see the LoRA learn,"
        " and a fault in sampling shows in the first minute."
    )
    CATEGORY = "LongCat/training"
    FUNCTION = "plan"
    RETURN_TYPES = (LONGCAT_VALIDATION,)
    RETURN_NAMES = ("validation",)
    OUTPUT_TOOLTIPS = ("For TrainLoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        pairs = "Pairs to sample from that are not trained on; without it the first training pairs are used."
        return {"required": widgets(ValidationConfig), "optional": {"cache": socket(LONGCAT_CACHE, pairs)}}

    VALIDATE_INPUTS = own_check(ValidationConfig, "validation_resolution")

    def plan(self, cache: Cache | None = None, **settings: Any) -> tuple[ValidationPlan]:
        return (ValidationPlan(config=configured(LongCatValidation, ValidationConfig, settings), cache=cache),)


class LongCatTrainingOptions:
    """Everything about a run that most users leave alone."""

    DISPLAY_NAME = "LongCat Training Options"
    DESCRIPTION = "Settings of TrainLoRA that most runs leave alone; without this node the same defaults hold."
    CATEGORY = "LongCat/training"
    FUNCTION = "choose"
    RETURN_TYPES = (LONGCAT_OPTIONS,)
    RETURN_NAMES = ("options",)
    OUTPUT_TOOLTIPS = ("For TrainLoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": widgets(TrainingOptions)}

    def choose(self, **settings: Any) -> tuple[TrainingOptions]:
        return (configured(LongCatTrainingOptions, TrainingOptions, settings),)


class TrainLoRA:
    """Trains, resumes, or returns what an equal run has already made."""

    DISPLAY_NAME = "Train LoRA"
    DESCRIPTION = (
        "Trains a LoRA on the cached pairs. Interrupt whenever you like: the run is saved, and queueing it again goes"
        " on where it was. A finished run of the same settings is returned at once. The LoRA is also written to"
        " models/loras."
    )
    CATEGORY = "LongCat/training"
    FUNCTION = "train"
    OUTPUT_NODE = True
    RETURN_TYPES = (LONGCAT_LORA, "STRING", "LOSS_MAP", "IMAGE", "IMAGE")
    RETURN_NAMES = ("lora", "path", "loss_map", "loss_curve", "samples")
    OUTPUT_TOOLTIPS = (
        "The trained LoRA, for LongCatLoadLoRA.",
        "Where the LoRA file lies.",
        "The loss of each step, for core's LossGraphNode (which needs two different values: train at least 2 steps).",
        "The loss of each step, drawn.",
        "The last validation pictures, of clips a strip of frames each; one grey picture without validation.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        basic = ("run_name", "max_train_steps", "learning_rate", "lora_rank", "train_batch_size", "seed")
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model to train on; its own LoRAs are not trained."),
                "cache": socket(LONGCAT_CACHE, "The cache from LongCatCacheText."),
                **widgets(TrainConfig, *basic),
            },
            "optional": {
                "validation": socket(LONGCAT_VALIDATION, "Pictures while training, from LongCatValidation."),
                "options": socket(LONGCAT_OPTIONS, "More settings, from LongCatTrainingOptions."),
                **widgets(TrainConfig, "restart"),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    VALIDATE_INPUTS = own_check(TrainConfig, "run_name")

    @classmethod
    def IS_CHANGED(cls, restart: bool = TrainConfig.restart, **_others: Any) -> float | str:
        # NaN differs from itself: asked to start over, the node must not be answered from ComfyUI's own cache.
        return float("nan") if restart else ""

    def train(
        self,
        model: Stages,
        cache: Cache,
        validation: ValidationPlan | None = None,
        options: TrainingOptions | None = None,
        unique_id: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        config = configured(
            TrainLoRA,
            TrainConfig,
            settings,
            options=options or TrainingOptions(),
            validation=validation.config if validation else None,
        )
        places = run_places(validation.cache if validation else None)
        with current_host().work(unique_id) as callbacks:
            result = model.train(config, cache, places, callbacks)
        return _outputs(result)


def run_places(validation_cache: Cache | None) -> RunPlaces:
    """The host's."""
    from ..training.loop.train import RunPlaces

    host = current_host()
    return RunPlaces(
        runs_dir=host.runs_dir(),
        lora_dir=host.lora_dirs()[0],
        device=host.device(),
        validation_cache=validation_cache,
    )


def _outputs(result: TrainResult) -> dict[str, Any]:
    from ..training.data.media import read_image
    from ..training.loop.loss_curve import draw_loss_curve
    from .images import grey_image, shown_in_ui, to_image

    pictures = [read_image(path) for path in result.samples]
    return {
        "ui": {
            "text": [f"{result.step} steps: {result.lora}"],
            **({"report": [result.report.text()]} if result.report else {}),
            "images": shown_in_ui(result.samples, current_host().runs_dir().parent),
        },
        "result": (
            TrainedLora(path=result.lora, folder=result.folder, lora_dir=result.lora.parent, report=result.report),
            str(result.lora),
            {"loss": [float(loss) for loss in result.losses]},
            to_image([draw_loss_curve(result.losses)]),
            to_image(pictures) if pictures else grey_image(),
        ),
    }


NODES: dict[str, type] = {
    "LongCatValidation": LongCatValidation,
    "LongCatTrainingOptions": LongCatTrainingOptions,
    "TrainLoRA": TrainLoRA,
}
