"""Every key of SimpleTuner's config.json and data file that this pack knows, and what becomes of it here.

A key goes to a field of a config dataclass, is read by read.py, is accepted at certain values only because
training here is always like that, or is known and has no effect, for a stated reason. Whatever is not in these tables
is an error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..settings.dataset import ClipConfig, DatasetConfig
from ..settings.geometry import PROMPT_SLOTS
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
        accepts=(True, False),
        help="true: the shift that the released schedule has at the resolution (widget 0), unless flow_schedule_shift"
        " gives one. false: flow_schedule_shift, with 0 meaning no shift (widget 1) and absent SimpleTuner's 3, for"
        " LongCat-Video 12.",
    ),
    "lora_alpha": _field(
        TrainingOptions, "lora_alpha", "Scale of the adapter is alpha / rank. null or 0: alpha = rank."
    ),
    "lora_type": _always(
        "LyCORIS adapters (LoKr, LoHa and others) are not trained here. Set lora_type to standard: a plain LoRA of"
        " lora_rank is trained, and lycoris_config is not read.",
        "standard",
    ),
    "optimizer": _field(
        TrainingOptions,
        "optimizer",
        "adamw, also for adamw_bf16 and the 8-bit kinds of it: the adapter and the optimiser's state are kept in fp32."
        " adafactor.",
    ),
    "ramtorch": Key(
        help="true: as enable_group_offload, which streams the transformer's blocks through the card.",
        accepts=(True, False),
    ),
    "cache_dir_text": Key(
        help="Where embedded prompts are kept; in a data file: cache_dir of an entry of dataset_type text_embeds."
    ),
    "optimizer_config": _always("Options of an optimizer have keys of their own, such as weight_decay.", None, ""),
}
"""Keys that are read with more than a copy."""

_ALIASES: dict[str, Key] = {
    "adam_weight_decay": _field(TrainingOptions, "weight_decay"),
    "musubi_blocks_to_swap": _field(ModelConfig, "blocks_to_swap"),
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
    "init_lora": _always("A run begins with a fresh adapter, or resumes its own.", None, ""),
    "lora_initialisation_style": _always("The adapter begins at zero effect.", "default", None),
    "flow_sigmoid_scale": _always("Noise levels are sigmoids of unit normals.", 1, None),
    "flow_use_uniform_schedule": _always("Noise levels are sigmoids of unit normals.", False),
    "flow_use_beta_schedule": _always("Noise levels are sigmoids of unit normals.", False),
    "input_perturbation": _always("Noise is not perturbed.", 0, None),
    "offset_noise": _always("Noise has no offset.", False),
    "train_text_encoder": _always("Only the transformer gets an adapter.", False),
    "tokenizer_max_length": _always(
        f"Prompts have at most {PROMPT_SLOTS} tokens, the length the model was trained with.", PROMPT_SLOTS, None
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

_SENT = _noted("Nothing is sent or uploaded: a run writes events.jsonl, a loss curve and samples into its folder.")
_BATCHES = _noted("Pictures are encoded one after another, and their files read when a batch needs them.")
_FOLDERS = _noted("Folders are looked through before every run; what has not changed is not encoded again.")
_TILES = _noted("Pictures and clips are encoded whole; clips are decoded in tiles.")
_COMPILED = _noted("Nothing is compiled for training or previews.")
_PRECISION = _noted("The adapter, its gradients and the optimiser are fp32; the model computes in bf16 where it can.")
_RAMTORCH = _noted("Training streams whole blocks of the transformer; the other parts are in memory one at a time.")
_SIZES = _noted("Large pictures are reduced to their bucket in one step.")
_SMALL = _noted(
    "No picture is left out for its size: small ones are enlarged to their bucket. Remove them to leave them out."
)
_COMMENT = Key(help="A remark of yours; it is not read.")
_WITHOUT_EFFECT: dict[str, Key] = {
    **_each(
        _SENT,
        *("report_to", "tracker_project_name", "tracker_run_name", "push_to_hub", "push_checkpoints_to_hub"),
        *("hub_model_id", "model_card_note", "webhook_config", "logging_dir"),
    ),
    **_each(
        _BATCHES,
        *("vae_batch_size", "write_batch_size", "read_batch_size", "image_processing_batch_size", "max_workers"),
        *("dataloader_prefetch", "dataloader_prefetch_qlen"),
    ),
    **_each(_FOLDERS, "skip_file_discovery", "preserve_data_backend_cache", "metadata_update_interval"),
    **_each(_TILES, "vae_enable_tiling", "vae_enable_slicing"),
    **_each(_COMPILED, "dynamo_backend", "validation_torch_compile"),
    **_each(_PRECISION, "base_model_default_dtype", "gradient_precision"),
    **_each(
        _RAMTORCH,
        *("ramtorch_target_modules", "ramtorch_transformer_percent", "ramtorch_text_encoder", "ramtorch_vae"),
        *("ramtorch_text_encoder_percent", "ramtorch_controlnet", "ramtorch_disable_sync_hooks"),
        *("ramtorch_disable_extensions", "musubi_block_swap_device"),
    ),
    **_each(_SIZES, "maximum_image_size", "target_downsample_size"),
    "minimum_image_size": _SMALL,
    "_comment": _COMMENT,
    "grad_clip_method": _noted("Gradients are clipped by their norm, max_grad_norm, as in the official trainer."),
    "lycoris_config": _noted("It belongs to lora_type lycoris; a plain LoRA has none."),
    "disable_benchmark": _noted("Pictures before the first step are made wherever validation_steps asks for pictures."),
    "cache_dir_vae": _noted("Each dataset names the folder of its latents: cache_dir_vae in the data file."),
    "cache_dir": _noted("cache_dir_text and, in the data file, cache_dir_vae name the folders."),
    "text_embeds_cache_dir": _noted("cache_dir_text names the folder."),
    "vae_dtype": _noted("The VAE computes in fp32."),
    "compress_disk_cache": _noted("Cache files are not compressed."),
    "vae_cache_ondemand": _noted("Everything is encoded before the training begins."),
    "aws_max_pool_connections": _noted("Data are read from local folders."),
    "torch_num_threads": _noted("The number of threads is left as torch and its environment set it."),
    "keep_vae_loaded": _noted("One part of the model is in memory at a time."),
    "offload_during_startup": _noted("One part of the model is in memory at a time."),
    "quantize_via": _noted("Weights are quantised block by block while they are read."),
    "group_offload_to_disk_path": _noted("Streamed blocks are kept in main memory, never on the disk."),
    "group_offload_use_stream": _noted("Streams are used on CUDA devices."),
    "attention_mechanism": _noted("Attention is torch's own; it chooses the kernel for the device."),
    "allow_tf32": _noted("torch's settings of the process are left as they are."),
    "disable_tf32": _noted("torch's settings of the process are left as they are."),
    "fuse_optimizer": _noted("The optimiser steps once per step, after all gradients."),
    "fused_qkv_projections": _noted("Projections stay as the model has them, so that a LoRA fits everywhere."),
    "minimum_aspect_ratio": _noted("No picture is left out for its aspect: it goes to the nearest bucket."),
    "maximum_aspect_ratio": _noted("No picture is left out for its aspect: it goes to the nearest bucket."),
    "disable_bucket_pruning": _noted("No picture is ever left out."),
    "data_backend_sampling": _noted("Every picture is seen once per epoch, or as often as repeats say."),
    "aspect_bucket_rounding": _noted("A bucket is found from the sides, not from a rounded ratio."),
    "ignore_final_epochs": _noted("Runs are counted in steps."),
    "delete_unwanted_images": _noted("Your folders are only read, never written to."),
    "delete_problematic_images": _noted("Your folders are only read, never written to."),
    "validation_disable_unconditional": _noted("There is no picture of the empty prompt."),
    "print_filenames": _noted("The names of a batch are shown when something is wrong with it."),
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
    "type": _always("Data are read from local folders.", "local"),
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
    **_each(Key(help="true: the dataset is left out.", accepts=(True, False)), "disabled", "disable"),
    "_comment": _COMMENT,
    "video": Key(help="How clips are taken from videos: an object of the keys below. For dataset_type video."),
    "probability": _always("Datasets are drawn by their sizes; give repeats instead.", 1, None),
    "only_instance_prompt": _always("Use caption_strategy instanceprompt.", False),
    "prepend_instance_prompt": _always("Captions are used as they are written.", False),
    "minimum_image_size": _SMALL,
    "recursive": _field(
        DatasetConfig, "recursive", "Whether sub-folders are read; SimpleTuner has no such key, and always reads them."
    ),
    "conditioning": _always(
        "Reference pictures are not made here. Make them first, and name their dataset in conditioning_data.", None
    ),
    "conditioning_type": _always(
        "References go into the model as LongCat-Image-Edit was trained with.",
        "reference_strict",
        "reference_loose",
        None,
    ),
    **_each(
        _noted("Cache files are named by their contents."),
        *("vae_cache_clear_each_epoch", "hash_filenames", "cache_file_suffix"),
    ),
    **_each(_FOLDERS, "metadata_backend", "skip_file_discovery", "preserve_data_backend_cache"),
    **_each(_noted("All prompts are kept in one folder, cache_dir_text."), "text_embeds", "image_embeds", "default"),
    "write_batch_size": _BATCHES,
    **_each(_SIZES, "maximum_image_size", "target_downsample_size"),
    **_each(
        _noted("No picture is left out for its aspect: it goes to the nearest bucket."),
        *("minimum_aspect_ratio", "maximum_aspect_ratio"),
    ),
    "ignore_epochs": _noted("Runs are counted in steps."),
}
"""Keys of an entry of the data file."""

VIDEO_KEYS: dict[str, Key] = {
    **{name: _field(DatasetConfig, name) for name in (*CLIP_FIELDS, "is_i2v")},
    "max_frames": _noted("No video is left out for its length; of a long one num_frames are taken."),
    "_comment": _COMMENT,
}
"""Keys of the section `video` of an entry of the data file."""
