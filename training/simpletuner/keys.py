"""Every key of SimpleTuner's config.json and data file that this pack knows, and what becomes of it here.

A key goes to a field of a config dataclass, is read by `config_file`, is accepted at certain values only because
training here is always like that, or is known and has no effect, for a stated reason. Whatever is not in these tables
is an error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..settings.dataset import ClipConfig, DatasetConfig
from ..settings.model import ModelConfig
from ..settings.option import option_of
from ..settings.run import TrainConfig, TrainingOptions
from ..settings.validation import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class Key:
    """What becomes of one key."""

    owner: type | None = None
    """The dataclass whose field it sets."""
    field: str = ""
    """Of `owner`."""
    help: str = ""
    """What it does here; for a field without words of its own, the option's help."""
    accepts: tuple[Any, ...] | None = None
    """Not None: other values are refused, with `help` as the reason."""
    without_effect: bool = False
    """Known, and listed with `help` as the reason when it is given."""

    @property
    def meaning(self) -> str:
        if self.help or self.owner is None:
            return self.help
        return option_of(self.owner, self.field).help


def _field(owner: type, field: str, help: str = "") -> Key:
    return Key(owner=owner, field=field, help=help)


def _fields(owner: type, *without: str) -> dict[str, Key]:
    names = (field.name for field in dataclasses.fields(owner) if "option" in field.metadata)
    return {name: _field(owner, name) for name in names if name not in without}


def _always(help: str, *accepts: Any) -> Key:
    return Key(help=help, accepts=accepts)


def _noted(help: str) -> Key:
    return Key(help=help, without_effect=True)


def _each(key: Key, *names: str) -> dict[str, Key]:
    return dict.fromkeys(names, key)


_READ: dict[str, Key] = {
    "model_type": _always(
        "A LoRA is what this pack trains; full fine-tuning and ControlNets are not supported.", "lora"
    ),
    "base_model_precision": _field(
        ModelConfig,
        "base_model_precision",
        "Precision of the frozen transformer. no_change: bf16, or fp32 with mixed_precision no. fp8-torchao keeps the"
        " weights in 8 bit and computes in bf16.",
    ),
    "mixed_precision": Key(
        help="bf16: as always here. no: fp32 throughout. fp16 is not supported: the released weights are bf16.",
        accepts=("bf16", "no"),
    ),
    "output_dir": _field(
        TrainConfig,
        "run_name",
        "The folder of the run: its last part names run and LoRA file. On the terminal the run lies there; in ComfyUI"
        " below output/longcat, since a server writes only into its own folders.",
    ),
    "data_backend_config": Key(
        help="The data file, looked for beside config.json, then from the current folder; without this key"
        " multidatabackend.json beside config.json."
    ),
    "eval_dataset_id": Key(
        help="The dataset of this id is not trained on; its pictures, or its captions and start frames, are what"
        " validation samples."
    ),
    "validation_using_datasets": Key(
        help="Edits and image-to-video are always validated on pictures of a dataset, so true changes nothing; text-to-"
        "image and text-to-video need none, and take the captions.",
        accepts=(True, False),
    ),
    "validation_steps": _field(
        ValidationConfig, "validation_steps", "Pictures every this many steps and before step 1; 0: none at all."
    ),
    "flow_schedule_shift": _field(
        TrainingOptions,
        "flow_schedule_shift",
        "Shift of the training noise levels. 0 or absent: by resolution, as flow_schedule_auto_shift; absent for"
        " LongCat-Video: 12, and there 0 is refused.",
    ),
    "flow_schedule_auto_shift": Key(
        help="true: the shift that the released schedule has at the resolution (widget 0), unless flow_schedule_shift"
        " gives one. false: flow_schedule_shift, with 0 meaning no shift (widget 1) and absent SimpleTuner's 3, for"
        " LongCat-Video 12."
    ),
    "lora_alpha": _field(
        TrainingOptions, "lora_alpha", "Scale of the adapter is alpha / rank. null or 0: alpha = rank."
    ),
    "lora_type": _always("Plain LoRA is what this pack trains; LyCORIS is not supported.", "standard"),
    "cache_dir_text": Key(
        help="Where embedded prompts are kept; in a data file: cache_dir of an entry of dataset_type text_embeds."
    ),
    "optimizer_config": _always("Options of an optimizer have keys of their own, such as weight_decay.", None, ""),
}
"""Keys that are read with more than a copy."""

_ALIASES: dict[str, Key] = {
    "adam_weight_decay": _field(TrainingOptions, "weight_decay"),
    "checkpointing_steps": _field(TrainingOptions, "checkpoint_step_interval"),
    "validation_step_interval": _field(ValidationConfig, "validation_steps"),
    "num_eval_images": _field(ValidationConfig, "num_samples"),
}
"""Other names that are in use for a field."""

_FIXED: dict[str, Key] = {
    "num_train_epochs": _always("Runs are counted in steps: give max_train_steps.", 0, None),
    "loss_type": _always("The loss is the mean squared error, as in the official trainer.", "l2"),
    "snr_gamma": _always("Flow matching has no SNR weighting.", None, 0),
    "lora_dropout": _always("Adapters are trained without dropout.", 0, None),
    "use_dora": _always("DoRA is not supported.", False),
    "lycoris_config": _always("LyCORIS is not supported.", None, ""),
    "init_lora": _always("A run begins with a fresh adapter, or resumes its own.", None, ""),
    "lora_initialisation_style": _always("The adapter begins at zero effect.", "default", None),
    "flow_sigmoid_scale": _always("Noise levels are sigmoids of unit normals, as in the official trainer.", 1, None),
    "flow_use_uniform_schedule": _always("Noise levels are sigmoid-normal, as in the official trainer.", False),
    "flow_use_beta_schedule": _always("Noise levels are sigmoid-normal, as in the official trainer.", False),
    "input_perturbation": _always("Noise is not perturbed.", 0, None),
    "offset_noise": _always("Noise has no offset.", False),
    "train_text_encoder": _always("Only the transformer gets an adapter.", False),
    "grad_clip_method": _always("Gradients are clipped by their norm.", "norm"),
    "tokenizer_max_length": _always(
        "Prompts have at most 512 tokens, the length the model was trained with.", 512, None
    ),
    "validation_guidance_rescale": _always("Guidance is not rescaled.", 0, None),
    "validation_prompt_library": _always("Write the prompts into validation_prompt, one a line.", False),
    "user_prompt_library": _always("Write the prompts into validation_prompt, one a line.", None, ""),
    "instance_data_dir": _always("Folders are named in the data file (data_backend_config).", None, ""),
    "resume_from_checkpoint": _always(
        "An unfinished run of the same settings is always resumed from its newest checkpoint.", "latest", None, ""
    ),
}
"""Keys that have one right value here."""

_NOWHERE = _noted("Nothing is sent or uploaded: a run writes events.jsonl, a loss curve and samples into its folder.")
_CACHES = _noted("Caches here are named by their contents, so there is nothing to tune or to clear.")
_LOADING = _noted("One part of the model is in memory at a time; there is nothing to tune.")
_NUMERICS = _noted("Attention, kernels and number formats are chosen here for the device.")
_WITHOUT_EFFECT: dict[str, Key] = {
    **_each(
        _NOWHERE,
        *("report_to", "tracker_project_name", "tracker_run_name", "push_to_hub", "push_checkpoints_to_hub"),
        *("hub_model_id", "model_card_note", "webhook_config", "logging_dir", "disable_benchmark"),
    ),
    **_each(
        _CACHES,
        *("vae_batch_size", "write_batch_size", "read_batch_size", "image_processing_batch_size", "cache_dir_vae"),
        *(
            "cache_dir",
            "compress_disk_cache",
            "vae_cache_ondemand",
            "skip_file_discovery",
            "preserve_data_backend_cache",
        ),
        *("metadata_update_interval", "max_workers", "aws_max_pool_connections", "torch_num_threads"),
        *("dataloader_prefetch", "dataloader_prefetch_qlen", "text_embeds_cache_dir"),
    ),
    **_each(
        _LOADING,
        *("keep_vae_loaded", "vae_enable_tiling", "vae_enable_slicing", "offload_during_startup", "quantize_via"),
        *("vae_dtype", "group_offload_to_disk_path", "group_offload_use_stream"),
    ),
    **_each(
        _NUMERICS,
        *("attention_mechanism", "allow_tf32", "disable_tf32", "base_model_default_dtype", "dynamo_backend"),
        *("validation_torch_compile", "fuse_optimizer", "gradient_precision", "fused_qkv_projections"),
    ),
    "minimum_aspect_ratio": _noted("Every picture goes to the bucket nearest to its aspect."),
    "disable_bucket_pruning": _noted("No picture is ever left out."),
    "data_backend_sampling": _noted("Batches come from the buckets in an order drawn from seed."),
    "aspect_bucket_rounding": _noted("A bucket is found from the sides, not from a rounded ratio."),
    "ignore_final_epochs": _noted("Runs are counted in steps."),
    "delete_unwanted_images": _noted("Your folders are only read, never written to."),
    "delete_problematic_images": _noted("Your folders are only read, never written to."),
    "validation_disable_unconditional": _noted("There is no picture of the empty prompt."),
    "print_filenames": _noted("The names of a batch are told when something is wrong with it."),
    "override_dataset_config": _noted("Each run writes down its own settings."),
}
"""Keys that change nothing about the LoRA."""

CLIP_FIELDS = tuple(_fields(ClipConfig))
"""What a dataset may say about its clips, in its section `video` or beside it."""

_DATASET_WIDE = ("id", "dataset_type", "instance_data_dir")
"""Data keys that say something about one dataset only."""

CONFIG_KEYS: dict[str, Key] = {
    **_fields(ModelConfig),
    **_fields(TrainConfig),
    **_fields(TrainingOptions),
    **_fields(ValidationConfig),
    **_fields(DatasetConfig, *_DATASET_WIDE),
    **_ALIASES,
    **_FIXED,
    **_WITHOUT_EFFECT,
    **_READ,
    "crop": Key(help="For all datasets; see the data file's crop.", accepts=(True, False)),
}
"""Keys of config.json. Those of DatasetConfig hold for every dataset that does not say otherwise."""

DATA_KEYS: dict[str, Key] = {
    **_fields(DatasetConfig),
    "type": _always("Data are read from local folders; cloud storage is not supported.", "local"),
    "dataset_type": _field(
        DatasetConfig,
        "dataset_type",
        "image, video, conditioning (the references or start frames), eval (as eval_dataset_id names it), or"
        " text_embeds (only cache_dir counts).",
    ),
    "caption_strategy": _field(
        DatasetConfig, "caption_strategy", "Where captions come from; null: there are none (references)."
    ),
    "resolution": _field(
        DatasetConfig, "resolution", "One number, or several sizes as a list or with commas (1024x1024,1344x768)."
    ),
    "conditioning_data": Key(
        help="The id of this dataset's reference pictures or start frames; in the graph PairDatasets joins the two."
    ),
    "cache_dir_vae": Key(help="Where the latents of this dataset are kept; not the folder of another one."),
    "cache_dir": Key(help="Of a text_embeds entry: where embedded prompts are kept."),
    "crop": Key(
        help="false: pictures keep their aspect (crop_aspect preserve). true: crop_aspect as given, else square.",
        accepts=(True, False),
    ),
    "disabled": Key(help="true: the dataset is left out.", accepts=(True, False)),
    "video": Key(help="How clips are taken from videos: an object of the keys below. For dataset_type video."),
    "probability": _always("Datasets are drawn by their sizes; give repeats instead.", 1, None),
    "only_instance_prompt": _always("Use caption_strategy instanceprompt.", False),
    "prepend_instance_prompt": _always("Captions are used as they are written.", False),
    "minimum_image_size": _always("No picture is left out; remove small ones from the folder.", 0, None),
    "conditioning_type": _always(
        "References go into the model as LongCat-Image-Edit was trained with.",
        "reference_strict",
        "reference_loose",
        None,
    ),
    **_each(
        _CACHES,
        *("write_batch_size", "vae_cache_clear_each_epoch", "hash_filenames", "cache_file_suffix", "metadata_backend"),
        *("skip_file_discovery", "preserve_data_backend_cache", "text_embeds", "image_embeds", "default"),
    ),
    "maximum_image_size": _noted("Large pictures are reduced to their bucket in one step."),
    "target_downsample_size": _noted("Large pictures are reduced to their bucket in one step."),
    "ignore_epochs": _noted("Runs are counted in steps."),
}
"""Keys of an entry of the data file."""

VIDEO_KEYS: dict[str, Key] = {
    **{name: _field(DatasetConfig, name) for name in (*CLIP_FIELDS, "is_i2v")},
    "max_frames": _always("No video is left out for its length; of a long one num_frames are taken.", None),
}
"""Keys of the section `video` of an entry of the data file."""
