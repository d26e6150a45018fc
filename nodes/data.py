"""Nodes between the user's folders and the trainer: datasets, pairs, caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.settings.dataset import REFERENCES_FOLDER, TARGETS_FOLDER, TEXT_FOLDER, DatasetConfig
from .examples import EXAMPLES, draw_example
from .host import current_host
from .types import (
    LONGCAT_CACHE,
    LONGCAT_DATASET,
    LONGCAT_MODEL,
    LONGCAT_PAIRS,
    configured,
    own_check,
    socket,
    text,
    widgets,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.caches.cache import Cache
    from ..training.data.records import TrainingSet
    from ..training.loop.stages import Stages

# Saved workflows hold widgets by place: new ones only at the end.
OPTIONAL_DATASET_FIELDS = (
    "aspect_bucket_alignment",
    "repeats",
    "instance_prompt",
    "resolution_type",
    "crop_style",
    "crop_aspect",
    "num_frames",
    "fps",
    "clip_extraction",
    "is_i2v",
    "min_frames",
    "bucket_strategy",
    "frame_interval",
    "disable_multiline_split",
    "recursive",
)


class LongCatDataset:
    """Names a folder of pictures or videos and how to read it."""

    DISPLAY_NAME = "LongCat Dataset"
    DESCRIPTION = (
        "A folder of pictures or videos. For an edit LoRA two are needed: the edited pictures with their instructions,"
        " and the reference pictures of the same names; for text-to-image and video one, with captions; videos may have"
        f" a second one of start frames. Drawn on first use: {', '.join(EXAMPLES)}."
    )
    CATEGORY = "LongCat/data"
    FUNCTION = "describe"
    RETURN_TYPES = (LONGCAT_DATASET,)
    RETURN_NAMES = ("dataset",)
    OUTPUT_TOOLTIPS = ("The folder and its settings, for PairDatasets, CacheVAELatents or LongCatJoinDatasets.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = ("instance_data_dir", "id", "dataset_type", "caption_strategy", "resolution")
        return {
            "required": widgets(DatasetConfig, *required),
            "optional": widgets(DatasetConfig, *OPTIONAL_DATASET_FIELDS),
        }

    VALIDATE_INPUTS = own_check(DatasetConfig, "resolution", num_frames=DatasetConfig.num_frames)

    @classmethod
    def IS_CHANGED(
        cls, instance_data_dir: str = "", dataset_type: str = "image", recursive: bool = False, **_others: Any
    ) -> str:
        from ..training.data.folder import folder_fingerprint

        return folder_fingerprint(dataset_folder(instance_data_dir), subfolders=recursive or dataset_type == "video")

    def describe(self, **settings: Any) -> tuple[DatasetConfig]:
        return (resolved(configured(LongCatDataset, DatasetConfig, settings)),)


class PairDatasets:
    """Matches targets and references by file name."""

    DISPLAY_NAME = "Pair Datasets"
    DESCRIPTION = (
        "Pairs each target with the reference of the same file name and reads the instructions; for videos the"
        " references are their start frames. All faults are listed at once; look at the contact sheet before a long"
        " training."
    )
    CATEGORY = "LongCat/data"
    FUNCTION = "pair"
    # ComfyUI shows the report again only of output nodes when it remembers what they gave.
    OUTPUT_NODE = True
    RETURN_TYPES = (LONGCAT_PAIRS, "IMAGE", "STRING")
    RETURN_NAMES = ("pairs", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "The pairs, for the caches.",
        "The first pairs: reference, target, instruction; of clips start, middle and last frame.",
        "How many pairs there are, and in which buckets; of videos also their own frame rates.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "targets": socket(
                    LONGCAT_DATASET, "The edited pictures or the videos, with an instruction or caption each."
                ),
                "references": socket(
                    LONGCAT_DATASET,
                    "The pictures before the edit, or the videos' start frames, of the same file names.",
                ),
            }
        }

    def pair(self, targets: DatasetConfig, references: DatasetConfig) -> dict[str, Any]:
        from ..training.data.sets import survey_pairs

        return _outputs(shown([survey_pairs(targets, references)], self.DISPLAY_NAME))


class LongCatJoinDatasets:
    """Puts several folders into one training."""

    DISPLAY_NAME = "Join Datasets"
    DESCRIPTION = (
        "Trains on several folders at once: captioned folders, or pairs from PairDatasets. Each keeps its own"
        " resolution and repeats. With one input alone it shows the contact sheet of a captioned folder."
    )
    CATEGORY = "LongCat/data"
    FUNCTION = "join"
    # ComfyUI shows the report again only of output nodes when it remembers what they gave.
    OUTPUT_NODE = True
    RETURN_TYPES = (LONGCAT_PAIRS, "IMAGE", "STRING")
    RETURN_NAMES = ("pairs", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "The data of both, for the caches or another LongCatJoinDatasets.",
        "The first pictures or clips of each input, with their captions.",
        "How many pictures or clips there are, and in which buckets.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kinds = f"{LONGCAT_PAIRS},{LONGCAT_DATASET}"
        return {
            "required": {"first": socket(kinds, "A captioned folder from LongCatDataset, or pairs.")},
            "optional": {"second": socket(kinds, "Another one, with another id.")},
        }

    def join(
        self, first: TrainingSet | DatasetConfig, second: TrainingSet | DatasetConfig | None = None
    ) -> dict[str, Any]:
        from ..training.data.sets import training_set_of

        sets = [training_set_of(given) for given in (first, second) if given is not None]
        return _outputs(shown(sets, self.DISPLAY_NAME))


class CacheVAELatents:
    """Encodes all pictures that are not in the cache yet."""

    DISPLAY_NAME = "Cache VAE Latents"
    DESCRIPTION = (
        "Encodes targets and references with the VAE, once: files are named by their contents, so a changed picture or"
        " video is encoded again and nobody ever has to clear a cache. Needed before TrainLoRA."
    )
    CATEGORY = "LongCat/data"
    FUNCTION = "cache"
    RETURN_TYPES = (LONGCAT_CACHE, "STRING")
    RETURN_NAMES = ("cache", "report")
    OUTPUT_TOOLTIPS = ("The cached pictures, for LongCatCacheText.", "What was reused, what was encoded, and why.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        below = " Relative to output/longcat-cache; targets and references need folders of their own."
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model whose VAE encodes."),
                "pairs": socket(
                    f"{LONGCAT_PAIRS},{LONGCAT_DATASET}",
                    "Pairs from PairDatasets for an edit model; for text-to-image and video a captioned folder from"
                    " LongCatDataset, or several from LongCatJoinDatasets.",
                ),
                "cache_dir_vae": text("Where the targets' latents are kept." + below, TARGETS_FOLDER),
                "reference_cache_dir_vae": text("Where the references' latents are kept." + below, REFERENCES_FOLDER),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, cache_dir_vae: str = "", reference_cache_dir_vae: str = "", **_others: Any) -> str:
        return _which_exist(cache_dir_vae, reference_cache_dir_vae)

    def cache(
        self,
        model: Stages,
        pairs: TrainingSet | DatasetConfig,
        cache_dir_vae: str,
        reference_cache_dir_vae: str,
        unique_id: str | None = None,
    ) -> tuple[Cache, str]:
        from ..training.caches.cache import CacheFolders
        from ..training.data.sets import training_set_of

        folders = CacheFolders(
            targets=cache_folder(cache_dir_vae, "CacheVAELatents.cache_dir_vae"),
            references=cache_folder(reference_cache_dir_vae, "CacheVAELatents.reference_cache_dir_vae"),
        )
        data, host = training_set_of(pairs), current_host()
        with host.work(unique_id) as callbacks:
            cache, report = model.cache_latents(data, folders, host.device(), callbacks)
        return cache, report.text()


class LongCatCacheText:
    """Encodes all instructions that are not in the cache yet."""

    DISPLAY_NAME = "Cache Text"
    DESCRIPTION = (
        "Encodes every instruction together with its reference picture, and the empty instruction with the same"
        " reference, once. Needed before TrainLoRA; a cached run never loads the text encoder."
    )
    CATEGORY = "LongCat/data"
    FUNCTION = "cache_text"
    RETURN_TYPES = (LONGCAT_CACHE, "STRING")
    RETURN_NAMES = ("cache", "report")
    OUTPUT_TOOLTIPS = ("Pictures and instructions, for TrainLoRA.", "What was reused, what was encoded, and why.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        below = " Relative to output/longcat-cache."
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model whose text encoder encodes."),
                "cache": socket(LONGCAT_CACHE, "The cache from CacheVAELatents."),
                "cache_dir_text": text("Where the embeddings are kept." + below, TEXT_FOLDER),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, cache_dir_text: str = "", **_others: Any) -> str:
        return _which_exist(cache_dir_text)

    def cache_text(
        self, model: Stages, cache: Cache, cache_dir_text: str, unique_id: str | None = None
    ) -> tuple[Cache, str]:
        folder, host = cache_folder(cache_dir_text, "LongCatCacheText.cache_dir_text"), current_host()
        with host.work(unique_id) as callbacks:
            complete, report = model.cache_text(cache, folder, host.device(), callbacks)
        return complete, report.text()


def shown(sets: Sequence[TrainingSet], node: str = "") -> tuple[TrainingSet, Tensor, str]:
    """(all of `sets` as one, IMAGE of the contact sheets, report)

    Faults end nothing here: the report has them, and the stage that would use the data refuses them.

    Args:
        node: whose user sees the report.

    Raises:
        DataError: as `join_sets`.
    """
    from ..training.data.contact_sheet import contact_sheet
    from ..training.data.sets import describe, join_sets, without_files
    from .images import to_image

    sheets, found = [], []
    for each in sets:
        sheet, unreadable = contact_sheet(each)
        sheets.append(sheet)
        each = without_files(each, unreadable)
        found.append(replace(each, found_by=each.found_by or node) if each.faults else each)
    joined = join_sets(found)
    return joined, to_image(sheets), describe(joined)


def _outputs(data: tuple[TrainingSet, Tensor, str]) -> dict[str, Any]:
    """Of a node whose report also stands on itself."""
    return {"ui": {"report": [data[2]]}, "result": data}


def resolved(config: DatasetConfig) -> DatasetConfig:
    """`config` with the absolute path of its folder.

    Raises:
        PathError: there is no such folder, or it lies outside the allowed ones.
    """
    return replace(config, instance_data_dir=str(dataset_folder(config.instance_data_dir)))


def dataset_folder(name: str) -> Path:
    """The folder that instance_data_dir names; an example that is not there yet is drawn."""
    roots = current_host().data_roots()
    draw_example(name, roots.bases[0])
    return roots.resolve_folder(name, "LongCatDataset.instance_data_dir")


def cache_folder(name: str, what: str) -> Path:
    """A folder below the host's cache folder, or an absolute one where the host allows it.

    Raises:
        PathError: neither.
    """
    return current_host().cache_roots().resolve_new(name, what)


def _which_exist(*names: str) -> str:
    """Differs after a cache folder was deleted or a cache file refused, so that ComfyUI runs the node again instead of
    remembering it."""
    from ..training.caches.store import refused_reads

    return f"{[cache_folder(name, 'cache folder').is_dir() for name in names]} {refused_reads()}"


NODES: dict[str, type] = {
    "LongCatDataset": LongCatDataset,
    "PairDatasets": PairDatasets,
    "LongCatJoinDatasets": LongCatJoinDatasets,
    "CacheVAELatents": CacheVAELatents,
    "LongCatCacheText": LongCatCacheText,
}
