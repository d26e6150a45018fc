"""docs/configuration.md, made from the tables of keys. `make workflows` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...training.settings.dataset import DatasetConfig
from ...training.settings.option import option_of
from ...training.simpletuner.keys import CONFIG_KEYS, DATA_KEYS, VIDEO_KEYS, Key
from .from_config import NODE_OF

PLACES = {
    "model_type": "TrainLoRA",
    "mixed_precision": "LoadLongCat.base_model_precision",
    "data_backend_config": "the LongCatDataset nodes",
    "eval_dataset_id": "LongCatValidation.cache",
    "validation_using_datasets": "LongCatValidation",
    "flow_schedule_auto_shift": "LongCatTrainingOptions.flow_schedule_shift",
    "cache_dir_text": "LongCatCacheText.cache_dir_text",
    "cache_dir": "LongCatCacheText.cache_dir_text",
    "cache_dir_vae": "CacheVAELatents.cache_dir_vae, of references reference_cache_dir_vae",
    "conditioning_data": "PairDatasets.references",
    "crop": "LongCatDataset.crop_aspect",
    "disabled": "no node",
    "disable": "no node",
    "_comment": "no node",
    "ramtorch": "LoadLongCat.enable_group_offload",
    "video": "widgets of LongCatDataset",
}
"""Where to find keys that are not a widget of the same name."""

TEXT = """# Configuration

Every key of SimpleTuner's `config.json` and of its data file (`multidatabackend.json`) that this pack knows: what it
does here, and where it is in the graph. `make workflows` makes this file from `training/simpletuner/keys.py` and
`training/settings`.

- Both files may hold `//` and `/* */` comments and trailing commas. Keys may begin with `--`.
- Every key of config.json is also a flag of `longcat train`, `validate` and `config import`: `--learning_rate 1e-4`.
  A flag overrides the data file, the data file overrides config.json, and config.json overrides the default.
- Numbers and booleans may be texts (`"1e-4"`, `"false"`). `{{env:NAME}}` in a text stands for an environment variable;
  in the data file `{{model_family}}`, `{{output_dir}}` and `{{id}}` stand for these keys.
- Without `model_flavour` the flavour is `final`, as in SimpleTuner.
- All faults of both files are reported at once. An unknown key is an error that names the nearest known one. `null`
  leaves a setting at its default.
- A key that is known and has no effect is listed with the reason when a run starts.
- `pretrained_model_name_or_path`, datasets and caches may be relative: datasets to the home's `input` folder or the
  current folder, caches to `output/longcat-cache`.

## config.json

{config}

## Data file

A list of datasets. A dataset that another one names in `conditioning_data` holds its references, of videos their start
frames; if references have captions of their own (`caption_strategy` other than null), they replace the instructions,
with a warning.

{data}

### Section video

The clips of a dataset of `dataset_type` video: `"video": {{"num_frames": 93}}`. The same keys may also be in the
dataset itself.

{video}
"""


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    own = {name: key for name, key in CONFIG_KEYS.items() if key.owner is not DatasetConfig}
    shared = ", ".join(f"`{name}`" for name in CONFIG_KEYS if name not in own)
    config = f"{_table(own)}\n\nFor all datasets that do not set them: {shared}; see below."
    return TEXT.format(config=config, data=_table(DATA_KEYS), video=_table(VIDEO_KEYS))


def _table(keys: Mapping[str, Key]) -> str:
    rows = ["| key | what it does here | in the graph |", "|---|---|---|"]
    rows += [f"| `{name}` | {_meaning(key)} | {_place(name, key)} |" for name, key in sorted(keys.items())]
    return "\n".join(rows)


def _meaning(key: Key) -> str:
    words = [key.meaning]
    if key.owner is not None:
        choices = option_of(key.owner, key.field).choices
        words += [f"Choices: {', '.join(choices)}."] if choices else []
    if key.accepts is not None:
        words.append(f"Accepted: {', '.join(json.dumps(value) for value in key.accepts)}.")
    if key.without_effect:
        words.append("No effect here.")
    return " ".join(words).replace("|", "\\|").replace("\n", " ")


def _place(name: str, key: Key) -> str:
    if key.owner is not None:
        return f"{NODE_OF[key.owner]}.{key.field}"
    if key.without_effect:
        return "nowhere"
    return PLACES.get(name, "always so")
