"""What makes a run another run, one setting and one part of the data at a time: all of them, found by their fields."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_longcat.training.caches.cache import Cache, CachedRecord, CacheFolders
from comfyui_longcat.training.data.clips import Clip
from comfyui_longcat.training.data.records import ClipRecord, Record, Source, TrainingSet
from comfyui_longcat.training.data.video_files import VideoInfo
from comfyui_longcat.training.loop.run_folder import run_fingerprint
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.option import option_of
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.weights.spec import ModelSpec

EDIT = ModelSpec(config=ModelConfig(model_flavour="tiny-edit"), models_dirs=())
VIDEO = ModelSpec(config=ModelConfig(model_family="longcat_video", model_flavour="tiny-video"), models_dirs=())

# Names, previews, what is written and how often; and the length, where the learning rate does not depend on it.
NO_OTHER_RUN = {
    *("run_name", "restart", "validation", "max_train_steps"),
    *("checkpoint_step_interval", "checkpoints_total_limit", "debug_images"),
}


def another(kind, name):
    """A value of the field that is allowed and not its default."""
    default = next(field.default for field in dataclasses.fields(kind) if field.name == name)
    if name == "validation":
        return ValidationConfig()
    declared = option_of(kind, name)
    if declared.choices is not None:
        return next(choice for choice in declared.choices if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return f"{default}-2"
    return default + 4 if default + 4 <= declared.high else default / 2


def changed(config, name):
    if name in {field.name for field in dataclasses.fields(TrainConfig)}:
        return replace(config, **{name: another(TrainConfig, name)})
    return replace(config, options=replace(config.options, **{name: another(TrainingOptions, name)}))


def cache(*records, family="longcat_image"):
    dataset = TrainingSet(
        sources=(Source(targets=DatasetConfig(instance_data_dir="/data")),),
        records=tuple(each.record for each in records),
    )
    folders = CacheFolders(targets=Path("t"), references=Path("r"), text=Path("x"))
    return Cache(model_family=family, dataset=dataset, folders=folders, records=records)


RECORD = Record(name="1", target=Path("1.png"), references=(Path("2.png"),), caption="c", bucket=(64, 128))
CACHED = CachedRecord(
    record=RECORD,
    latents=Path("a.safetensors"),
    cond_latents=(Path("b.safetensors"),),
    prompt_embeds=Path("c.safetensors"),
    empty_prompt_embeds=Path("d.safetensors"),
)


@pytest.mark.parametrize(("spec", "others"), [(EDIT, {"first_frame_probability"}), (VIDEO, set())])
def test_each_setting_alone_makes_another_run_but_those_that_decide_no_number(spec, others):
    config, data = TrainConfig(), cache(CACHED)
    names = [
        field.name
        for kind in (TrainConfig, TrainingOptions)
        for field in dataclasses.fields(kind)
        if field.name != "options"
    ]
    before = run_fingerprint(config, spec, data, "weights")
    same = {name for name in names if run_fingerprint(changed(config, name), spec, data, "weights") == before}
    assert same == NO_OTHER_RUN | others


def test_each_part_of_the_data_alone_makes_another_run():
    def file(name):
        return Path(f"{name}.safetensors")

    before = cache(CACHED).fingerprint()
    others = {
        "latents": replace(CACHED, latents=file("e")),
        "reference": replace(CACHED, cond_latents=(file("e"),)),
        "no reference": replace(CACHED, cond_latents=()),
        "embeddings": replace(CACHED, prompt_embeds=file("e")),
        "empty embeddings": replace(CACHED, empty_prompt_embeds=file("e")),
        "more embeddings": replace(CACHED, more_prompt_embeds=(file("e"),)),
        "other embeddings": replace(CACHED, more_prompt_embeds=(file("f"),)),
        "name": replace(CACHED, record=replace(RECORD, name="2")),
        "bucket": replace(CACHED, record=replace(RECORD, bucket=(128, 64))),
        "repeats": replace(CACHED, record=replace(RECORD, repeats=1)),
    }
    found = {name: cache(each).fingerprint() for name, each in others.items()}
    found["two"], found["none"] = cache(CACHED, CACHED).fingerprint(), cache().fingerprint()
    found["family"] = cache(CACHED, family="longcat_video").fingerprint()
    assert len({before, *found.values()}) == 1 + len(found)
    # Where files lie decides nothing; what they hold has its name.
    for change in (
        {"target": Path("/elsewhere/1.png")},
        {"caption": "already in the embeddings"},
        {"crop": (0.0, 0.0)},
    ):
        assert cache(replace(CACHED, record=replace(RECORD, **change))).fingerprint() == before
    moved = {name: Path("/elsewhere") / getattr(CACHED, name) for name in ("latents", "prompt_embeds")}
    assert cache(replace(CACHED, **moved)).fingerprint() == before


def test_whether_a_clip_is_given_its_start_makes_another_run():
    clip = ClipRecord(
        **vars(RECORD),
        clip=Clip(start=0, frames=9),
        video=VideoInfo(size=(64, 64), frames=9, last=None),
        is_i2v=True,
    )
    prints = {cache(replace(CACHED, record=replace(clip, is_i2v=given))).fingerprint() for given in (True, False)}
    assert len(prints | {cache(CACHED).fingerprint()}) == 3


def test_a_run_is_another_one_with_other_weights_precision_or_order():
    data = cache(CACHED, replace(CACHED, record=replace(RECORD, name="2")))
    config, full = TrainConfig(), replace(EDIT, config=replace(EDIT.config, base_model_precision="fp32"))
    found = {
        run_fingerprint(config, EDIT, data, "weights"),
        run_fingerprint(config, EDIT, data, "others"),
        run_fingerprint(config, full, data, "weights"),
        run_fingerprint(config, EDIT, replace(data, records=data.records[::-1]), "weights"),
    }
    assert len(found) == 4
    for same in ({"text_encoder_1_precision": "int8-quanto"}, {"blocks_to_swap": 1}):
        spec = replace(EDIT, config=replace(EDIT.config, **same))
        assert run_fingerprint(config, spec, data, "weights") in found
