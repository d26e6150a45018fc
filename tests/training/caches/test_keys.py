"""What a cache file's name depends on, one thing at a time: each alone gives another file, and nothing else does."""

from __future__ import annotations

import inspect
import os
import shutil
from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches import keys
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.keys import clip_parts, hash_pictures, latents_parts, text_parts
from comfyui_longcat.training.caches.latents import cache_latents, load_latents
from comfyui_longcat.training.caches.store import Item
from comfyui_longcat.training.caches.text import cache_prompts, cache_text, prompt_of
from comfyui_longcat.training.data.clips import Clip, read_clip
from comfyui_longcat.training.data.media import read_image, to_pixels
from comfyui_longcat.training.data.sets import pair_datasets
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.tiny.examples import draw_example_clips, draw_example_pairs
from comfyui_longcat.training.weights.components import open_vae
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")

LATENTS = {
    "family": ("longcat_image", "longcat_video"),
    "vae": ("vae 1", "vae 2"),
    "picture": ("hash 1", "hash 2"),
    "bucket": ((64, 128), (128, 64)),
    "crop": ((0.25, 0.5), (0.5, 0.25)),
}
CLIP = {"start": (3, 4), "frames": (9, 13), "fps": (15.0, 15.5)}
TEXT = {
    "model": (ModelConfig(), ModelConfig(text_encoder_1_precision="int8-quanto")),
    "text_encoder": ("encoder 1", "encoder 2"),
    "dtypes": ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)),
    "caption": ("a cat", "a cat "),
    "references": (["hash 1"], ["hash 1", "hash 2"]),
    "bucket": ((64, 128), (128, 64)),
    "crop": ((0.25, 0.5), (0.5, 0.25)),
}


def key(parts, tensor="latents", folder=None):
    return Item(label="", source="", folder=folder or "", tensor=tensor, parts=parts, encode=None).identity.items()


def varied(make, table):
    """The parts of the first values, then with each second value alone, by its name."""
    first = {name: values[0] for name, values in table.items()}
    return {"": make(**first)} | {name: make(**first | {name: values[1]}) for name, values in table.items()}


def all_differ(made):
    found = [tuple(sorted(key(parts))) for parts in made.values()]
    return len(set(found)) == len(found)


def test_every_argument_of_a_key_alone_gives_another_one():
    for make, table in ((latents_parts, LATENTS), (text_parts, TEXT)):
        assert table.keys() == inspect.signature(make).parameters.keys()
        made = varied(make, table)
        assert all_differ(made), made
    clips = varied(lambda **values: clip_parts(Clip(**values)), CLIP)
    assert CLIP.keys() == inspect.signature(Clip).parameters.keys()
    assert all_differ(clips) and clip_parts(None) == {}


def test_a_device_that_computes_in_another_dtype_has_keys_of_its_own():
    first = {name: values[0] for name, values in TEXT.items()}
    bf16, fp32 = torch.bfloat16, torch.float32
    made = [text_parts(**first | {"dtypes": dtypes}) for dtypes in ((bf16, bf16), (bf16, fp32), (fp32, fp32))]
    assert all_differ(dict(enumerate(made)))


@pytest.mark.parametrize("code", ["LATENTS_CODE", "CLIP_CODE", "TEXT_CODE"])
def test_the_count_of_each_stage_is_in_its_keys_alone(monkeypatch, code):
    def parts():
        return {
            "LATENTS_CODE": latents_parts(**{name: values[0] for name, values in LATENTS.items()}),
            "CLIP_CODE": clip_parts(Clip(start=0, frames=9)),
            "TEXT_CODE": text_parts(**{name: values[0] for name, values in TEXT.items()}),
        }

    before = parts()
    monkeypatch.setattr(keys, code, "next")
    assert [name for name, found in parts().items() if found != before[name]] == [code]


def test_what_makes_no_difference_is_no_part():
    text = {name: values[0] for name, values in TEXT.items()} | {"references": []}
    other = text | {"bucket": (128, 64), "crop": (0.0, 0.0)}
    assert text_parts(**text) == text_parts(**other), "the size of a picture that the encoder does not see"
    for precision in ("fp8-torchao", "int8-quanto"):
        assert text_parts(**text | {"model": ModelConfig(base_model_precision=precision)}) == text_parts(**text)
    # Times of files, and their names.
    assert clip_parts(Clip(start=0, frames=9)) == clip_parts(Clip(start=0, frames=9, fps=15.0))


def test_a_file_is_known_by_its_bytes_and_a_folder_by_names_and_bytes(tmp_path):
    def hash_of(path):
        return hash_pictures([path], NoCallbacks(), [path] if path.is_dir() else [])[path]

    one, same, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    Image.new("RGB", (8, 8), "red").save(one)
    shutil.copyfile(one, same)
    Image.new("RGB", (8, 8), (254, 0, 0)).save(other)
    assert hash_of(one) == hash_of(same) != hash_of(other)
    os.utime(same, (1, 1))
    assert hash_of(one) == hash_of(same)
    frames = [tmp_path / name for name in ("frames", "renamed", "changed")]
    for folder, names in zip(frames, [(one, other), (other, one), (one, same)], strict=True):
        folder.mkdir()
        for number, picture in enumerate(names):
            shutil.copyfile(picture, folder / f"{number}.png")
    assert len({hash_of(folder) for folder in frames}) == 3, "the order of pictures and each of them count"


# Through the stages: what a record and a model are, and which of its four files then are others.

TARGET, REFERENCE, PROMPT, EMPTY = "latents", "cond_latents", "prompt_embeds", "empty_prompt_embeds"


class Stages:
    """Both stages on one record; all its files stay in one place."""

    def __init__(self, folder, spec, dataset):
        self.folders = CacheFolders(targets=folder / "cache" / "targets", references=folder / "cache" / "references")
        self.text = folder / "cache" / "text"
        self.spec, self.dataset, self.record = spec, dataset, dataset.records[0]
        self.before = self.files(self.record, spec)

    def files(self, record, spec):
        dataset = replace(self.dataset, records=(record,))
        cache, _ = cache_latents(dataset, spec, self.folders, CPU, NoCallbacks())
        cache, _ = cache_text(cache, spec, self.text, CPU, NoCallbacks())
        (made,) = cache.records
        return {name: getattr(made, name) for name in (TARGET, REFERENCE, PROMPT, EMPTY)}

    def others(self, record=None, spec=None):
        """Which files are not those from before."""
        found = self.files(record or self.record, spec or self.spec)
        return {name for name, path in found.items() if path != self.before[name]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_checkpoint):
    folder = tmp_path_factory.mktemp("pair")
    draw_example_pairs(folder / "targets", folder / "references", count=1)
    config = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(), folder=tiny_checkpoint)
    sides = (
        DatasetConfig(id="targets", instance_data_dir=str(folder / "targets"), resolution="64"),
        DatasetConfig(
            id="references",
            instance_data_dir=str(folder / "references"),
            dataset_type="conditioning",
            caption_strategy="none",
            resolution="64",
        ),
    )
    return Stages(folder, spec, pair_datasets(*sides))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    draw_example_clips(folder / "clips", folder / "starts")
    config = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(folder / "models",))
    videos = DatasetConfig(
        id="clips", instance_data_dir=str(folder / "clips"), dataset_type="video", resolution="64", num_frames=5
    )
    starts = DatasetConfig(
        id="starts",
        instance_data_dir=str(folder / "starts"),
        dataset_type="conditioning",
        caption_strategy="none",
        resolution="64",
    )
    return Stages(folder, spec, pair_datasets(videos, starts))


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({"bucket": (128, 64)}, {TARGET, REFERENCE, PROMPT, EMPTY}),
        ({"crop": (0.25, 0.5)}, {TARGET, REFERENCE, PROMPT, EMPTY}),
        ({"crop": (0.5, 0.25)}, {TARGET, REFERENCE, PROMPT, EMPTY}),
        ({"caption": "another instruction"}, {PROMPT}),
        ({"name": "another name"}, set()),
        ({"repeats": 3}, set()),
        ({"more_captions": ("one more",)}, set()),
    ],
)
def test_a_pairs_files_depend_on_what_they_are_made_of(pair, change, others):
    assert pair.others(replace(pair.record, **change)) == others


@pytest.mark.parametrize(
    ("side", "others"), [("target", {TARGET}), ("references", {REFERENCE, PROMPT, EMPTY}), ("copies", set())]
)
def test_a_pairs_files_depend_on_the_pictures_content(pair, tmp_path, side, others):
    pictures = {"target": pair.record.target, "references": pair.record.references[0]}
    copies = {name: shutil.copyfile(path, tmp_path / f"{name}.png") for name, path in pictures.items()}
    if side in copies:
        image = Image.open(copies[side]).convert("RGB")
        image.putpixel((0, 0), (1, 2, 3))
        image.save(copies[side])
    record = replace(pair.record, target=copies["target"], references=(copies["references"],))
    assert pair.others(record) == others


@pytest.mark.parametrize(
    ("setting", "value", "others"),
    [
        ("base_model_precision", "bf16", {PROMPT, EMPTY}),
        ("text_encoder_1_precision", "int8-quanto", {PROMPT, EMPTY}),
        ("blocks_to_swap", 1, set()),
    ],
)
def test_a_pairs_files_depend_on_the_models_settings(pair, setting, value, others):
    if value == "int8-quanto":
        pytest.importorskip("optimum.quanto")
    assert pair.others(spec=replace(pair.spec, config=replace(pair.spec.config, **{setting: value}))) == others


@pytest.mark.parametrize(
    ("part", "others"),
    [("vae", {TARGET, REFERENCE}), ("text_encoder", {PROMPT, EMPTY}), ("transformer", set())],
)
def test_a_pairs_files_depend_on_the_weights_that_make_them(pair, tmp_path, part, others):
    folder = shutil.copytree(pair.spec.folder, tmp_path / "model")
    for path in (folder / part).glob("*.safetensors"):
        # All of them, as other weights are: the identity of a large file is that of samples.
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert pair.others(spec=replace(pair.spec, folder=folder)) == others


@pytest.mark.parametrize(
    ("change", "others"),
    [
        ({"clip": {"fps": 7.5}}, {TARGET}),
        ({"clip": {"start": 1}}, {TARGET}),
        ({"clip": {"frames": 9}}, {TARGET}),
        ({"bucket": (128, 64)}, {TARGET, REFERENCE}),
        ({"crop": (0.25, 0.5)}, {TARGET, REFERENCE}),
        ({"caption": "another caption"}, {PROMPT}),
        ({"name": "another name"}, set()),
        ({"is_i2v": False}, set()),
    ],
)
def test_a_clips_files_depend_on_what_they_are_made_of(clip, change, others):
    change = {name: replace(clip.record.clip, **value) if name == "clip" else value for name, value in change.items()}
    assert clip.others(replace(clip.record, **change)) == others


def test_a_clips_captions_are_those_of_its_kind(pair, clip):
    assert not set(pair.before.values()) & set(clip.before.values())


def test_a_negative_prompt_is_a_text_like_any_other(pair):
    """Its kind is for reports: it shares a file with the same words as an instruction."""
    record = pair.record
    prompts = [prompt_of(record, kind, text) for kind, text in (("instruction", "blur"), ("negative prompt", "blur"))]
    prompts.append(prompt_of(record, "negative prompt", "noise"))
    (one, same, other), _ = cache_prompts(prompts, pair.spec, pair.text, CPU, NoCallbacks())
    assert one == same != other and other not in pair.before.values()


def test_a_clips_latents_are_those_of_its_own_frames(clip):
    """Start, length, rate and crop reach the decoder, not only the key."""
    taken = Clip(start=1, frames=5, fps=10.0)
    record = replace(clip.record, clip=taken, bucket=(128, 64), crop=(0.5, 0.125))
    files = clip.files(record, clip.spec)
    (of_start,) = files[REFERENCE]
    pixels = read_clip(record.target, 1, 5, 10.0, (128, 64), (0.5, 0.125))
    family = family_of("longcat_video")
    with open_vae(clip.spec, CPU, NoCallbacks()) as vae:
        assert torch.equal(load_latents(files[TARGET]), family.encode_pixels(vae, pixels))
        start = to_pixels(read_image(record.references[0]), (128, 64), (0.5, 0.125))
        assert torch.equal(load_latents(of_start), family.encode_pixels(vae, start))
