"""Everything that reads files of users, each with sound files to begin from."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from comfyui_longcat.nodes.graph.core_nodes import draw_missing_samples, node_classes
from comfyui_longcat.nodes.graph.override import apply_settings
from comfyui_longcat.nodes.graph.runner import read_graph, run_graph
from comfyui_longcat.nodes.graph.tiny import make_tiny
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.nodes.terminal.rehearse import rehearsals
from comfyui_longcat.nodes.terminal.train import export_config, import_config
from comfyui_longcat.tests.conftest import build_single_file_twins
from comfyui_longcat.tests.twins.video_checkpoint import build_video_transformer
from comfyui_longcat.training.data.clips import read_clip
from comfyui_longcat.training.data.media import read_image
from comfyui_longcat.training.data.records import ClipRecord
from comfyui_longcat.training.data.sets import pair_datasets, scan_dataset
from comfyui_longcat.training.errors import ConfigError, StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.files import parse_json, write_json
from comfyui_longcat.training.lora.convert import convert_lora
from comfyui_longcat.training.lora.families import IMAGE, VIDEO
from comfyui_longcat.training.lora.file import apply_lora, read_metadata, save_lora
from comfyui_longcat.training.lora.inject import inject_lora
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.simpletuner.keys import CONFIG_KEYS, DATA_KEYS
from comfyui_longcat.training.simpletuner.read import DATA_FILE
from comfyui_longcat.training.weights.components import open_text_encoder, open_vae
from comfyui_longcat.training.weights.source import check_files
from comfyui_longcat.training.weights.spec import ModelFiles, ModelSpec
from comfyui_longcat.training.weights.twins import write_twin
from diffusers import LongCatImageTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

FRAMES = 12
CONTAINERS = {
    "mp4": ("libx264", "yuv420p"),
    "mkv": ("ffv1", "bgr0"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "ts": ("libx264", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
}


@dataclass(frozen=True, kw_only=True)
class Reader:
    make: Callable[[Path], None]
    """Writes sound inputs, each a folder in the given one; its name is all that `read` gets besides the files."""
    read: Callable[[Path, str, Path], Any]
    """Reads a folder as made by `make`, whose name is the second argument; may write below the third."""
    names: tuple[str, ...] = ()
    """Words that show a message's place as well as the name of the file does."""


# Configurations


def make_configs(folder: Path) -> None:
    quickstarts = ROOT / "tests" / "assets" / "quickstarts"
    pairs = {
        "example": (ROOT / "config" / "config.json.example", ROOT / "config" / "multidatabackend.json.example"),
        "edit": tuple(quickstarts / f"longcat_image_edit.en.{part}.jsonc" for part in ("config", "data")),
        "video": tuple(quickstarts / f"longcat_video_i2v.en.{part}.jsonc" for part in ("config", "data")),
    }
    for name, (config, data) in pairs.items():
        values = _values(config) | {"data_backend_config": DATA_FILE}
        # The quickstart names a dataset of a file that it does not show.
        values.pop("eval_dataset_id", None)
        write_json(folder / name / "config.json", values)
        write_json(folder / name / DATA_FILE, _values(data))


def read_config(folder: Path, name: str, scratch: Path) -> None:
    import_config(folder / "config.json", {}, scratch / "workflow", scratch)


def _values(path: Path) -> Any:
    return parse_json(path.read_bytes(), str(path), ConfigError, "", kind=object, comments=True)


# Captions, pictures, videos


def make_captions(folder: Path) -> None:
    names = ["a", "b", "c 1", "d.e"]
    captions = {f"{name}.png": f'a cat, "{name}"\nand a dog' for name in names}
    for strategy in ("textfile", "json", "json-table", "json-list", "csv", "filename"):
        for name in names:
            _picture(folder / strategy / f"{name}.png", 32)
    for name in names:
        (folder / "textfile" / f"{name}.txt").write_text(f"a cat, {name}\nä dog\n", encoding="utf-8")
        write_json(folder / "json" / f"{name}.json", {"caption": f"a cat, {name}", "tags": ["cat"]})
    write_json(folder / "json-table" / "captions.json", captions)
    write_json(folder / "json-list" / "metadata.json", [{"filename": n, "caption": c} for n, c in captions.items()])
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in captions.items()]
    (folder / "textfile" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    quoted = "".join('{},"{}"\n'.format(name, caption.replace('"', '""')) for name, caption in captions.items())
    (folder / "csv" / "captions.csv").write_text(f"filename,caption\n{quoted}", encoding="utf-8")


def read_captions(folder: Path, name: str, scratch: Path) -> None:
    strategy = name.split("-")[0]
    scan_dataset(_dataset(folder, caption_strategy=strategy))
    scan_dataset(_dataset(folder, caption_strategy=strategy, disable_multiline_split=True, recursive=True))


def make_pictures(folder: Path) -> None:
    picture = _drawn(48)
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = {
        "rgb.png": (picture, {"exif": exif}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "palette.png": (picture.convert("P"), {"transparency": 0}),
        "deep.png": (Image.fromarray(np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)), {}),
        "rgb.jpg": (picture, {"exif": exif}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "alpha.webp": (picture.convert("RGBA"), {"lossless": True}),
        "rgb.tif": (picture, {"compression": "tiff_deflate"}),
        "cmyk.tif": (picture.convert("CMYK"), {}),
        "palette.gif": (picture.convert("P"), {}),
        "rgb.bmp": (picture, {}),
        "rgb.jp2": (picture, {}),
        "rgb.avif": (picture, {}),
        "rgb.tga": (picture, {"rle": True}),
        "rgb.ico": (picture, {}),
        "rgb.ppm": (picture, {}),
        "rgb.pcx": (picture, {}),
        "rgb.dds": (picture, {}),
        "rgb.icns": (picture.resize((128, 128)), {}),
    }
    for name, (image, options) in saved.items():
        path = folder / name.replace(".", "-") / name
        path.parent.mkdir(parents=True)
        image.save(path, **options)


def read_pictures(folder: Path, name: str, scratch: Path) -> None:
    for record in scan_dataset(_dataset(folder, caption_strategy="filename")).records:
        read_image(record.target)


def make_videos(folder: Path) -> None:
    pictures = [_drawn(64, shift) for shift in range(FRAMES)]
    for suffix, (codec, pix_fmt) in CONTAINERS.items():
        path = folder / suffix / f"clip.{suffix}"
        path.parent.mkdir(parents=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(15))
            stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())
    for suffix in ("gif", "webp", "png"):
        path = folder / suffix / f"clip.{suffix}"
        path.parent.mkdir(parents=True)
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=66)
    for number, picture in enumerate(pictures):
        path = folder / "frames" / "clip" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def read_videos(folder: Path, name: str, scratch: Path) -> None:
    config = _dataset(folder, dataset_type="video", caption_strategy="filename", num_frames=5, fps=15.0)
    for record in scan_dataset(config).records:
        if isinstance(record, ClipRecord):
            read_clip(record.target, record.clip.start, record.clip.frames, record.clip.fps, (64, 64))


def make_pairs(folder: Path) -> None:
    for kind in ("pictures", "videos"):
        for name in ("a", "b"):
            _picture(folder / kind / "references" / f"{name}.png", 64)
            (folder / kind / "targets").mkdir(parents=True, exist_ok=True)
            (folder / kind / "targets" / f"{name}.txt").write_text(f"make it {name}")
    make_videos(folder / "made")
    for name in ("a", "b"):
        shutil.copy(folder / "made" / "mp4" / "clip.mp4", folder / "videos" / "targets" / f"{name}.mp4")
        _picture(folder / "pictures" / "targets" / f"{name}.png", 64)
    shutil.rmtree(folder / "made")


def read_pairs(folder: Path, name: str, scratch: Path) -> None:
    kind = {"dataset_type": "video", "num_frames": 5} if name == "videos" else {}
    references = _dataset(folder / "references", dataset_type="conditioning", caption_strategy="none", id="references")
    for record in pair_datasets(_dataset(folder / "targets", **kind), references).records:
        for path in record.references:
            read_image(path)


def _dataset(folder: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(instance_data_dir=str(folder), **{"resolution": "64", **settings})


def _picture(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _drawn(side).save(path)


def _drawn(side: int, shift: int = 0) -> Image.Image:
    across = np.arange(side, dtype=np.uint8)
    channels = np.broadcast_arrays(across[None] * 3 + shift, across[:, None] * 2, 90)
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


# LoRA and model files


def image_transformer() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LongCatImageTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 6, 6],
        )


def make_loras(folder: Path) -> None:
    with torch.no_grad():
        transformers = {"image": (image_transformer(), IMAGE), "video": (build_video_transformer(), VIDEO)}
    for kind, (transformer, family) in transformers.items():
        targets = family_of(f"longcat_{kind}").lora_targets("official" if kind == "image" else "attention")
        for parameter in inject_lora(transformer, targets, rank=2, alpha=2, seed=0).values():
            torch.nn.init.normal_(parameter, std=0.1)
        trained = folder / f"{kind}-portable" / "lora.safetensors"
        trained.parent.mkdir(parents=True)
        save_lora(trained, transformer, {"step": "1"})
        for layout in family.layouts:
            if layout not in ("portable", "peft"):
                convert_lora(trained, layout, folder / f"{kind}-{layout}" / "lora")
    trained = folder / "image-portable" / "lora.safetensors"
    convert_lora(trained, "peft", folder / "image-peft")
    tensors = load_file(trained)
    module = next(iter(tensors)).removeprefix("transformer.").removesuffix(".lora_A.weight")
    settings = {"r": 2, "lora_alpha": 4, "rank_pattern": {f"^{module}": 2}, "alpha_pattern": {module: 1}}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in settings.items()})}
    (folder / "image-metadata").mkdir()
    save_file(tensors, folder / "image-metadata" / "lora.safetensors", metadata)
    with_alpha = {key.replace("lora_A.weight", "alpha"): torch.tensor(4.0) for key in tensors if "lora_A" in key}
    (folder / "image-alpha").mkdir()
    save_file(tensors | with_alpha, folder / "image-alpha" / "lora.safetensors")


def read_loras(folder: Path, name: str, scratch: Path) -> None:
    kind, layout = name.split("-")
    path = folder if layout == "peft" else folder / "lora.safetensors"
    read_metadata(path)
    for layout in ("portable", "native" if kind == "image" else "official"):
        convert_lora(path, layout, scratch / layout)
    if kind == "image":
        apply_lora(image_transformer(), path, 1.0, "fuzzed")


def make_single_files(folder: Path) -> None:
    build_single_file_twins(folder)
    shutil.rmtree(folder / "LongCat-Image-Edit")


def read_single_files(folder: Path, name: str, scratch: Path) -> None:
    paths = {kind: next((folder / kind).iterdir(), folder / kind) for kind in ("transformer", "vae", "text_encoder")}
    files = ModelFiles(**paths, tokenizer=folder / "tokenizer")
    check_files(files)
    _open_all(ModelSpec(config=_model("longcat_image", "edit"), models_dirs=(scratch,), files=files))


def make_models(folder: Path) -> None:
    write_twin(folder / "tiny-edit")
    write_twin(folder / "tiny-video")


def read_models(folder: Path, name: str, scratch: Path) -> None:
    family = "longcat_video" if name == "tiny-video" else "longcat_image"
    _open_all(ModelSpec(config=_model(family, name), models_dirs=(scratch,), folder=folder))


def _model(family: str, flavour: str) -> ModelConfig:
    return ModelConfig(
        model_family=family, model_flavour=flavour, base_model_precision="fp32", text_encoder_1_precision="no_change"
    )


def _open_all(spec: ModelSpec) -> None:
    for open_part in (open_vae, open_text_encoder, open_transformer):
        with open_part(spec, CPU, NoCallbacks()):
            pass


# Workflows


def make_prompts(folder: Path) -> None:
    _copy_each(ROOT / "workflows" / "api", folder, "*.json")


def read_prompt(folder: Path, name: str, scratch: Path) -> None:
    """As `longcat run --tiny` reads it, up to the first node."""
    host = TerminalHost(scratch, device="cpu")
    with use_host(host):
        graph = read_graph(folder / "workflow.json")
        graph = apply_settings(make_tiny(graph, quantised=False), [], node_classes())
    draw_missing_samples(graph, host.input_dir())
    _stopped(lambda: run_graph(graph, host, lambda event: None, lambda: True))


def make_workflows(folder: Path) -> None:
    _copy_each(ROOT / "workflows", folder, "*_train.json")


def read_workflow(folder: Path, name: str, scratch: Path) -> None:
    """As `longcat rehearse`, up to the first node, and as `longcat config export`."""
    path, stop = folder / "workflow.json", threading.Event()
    stop.set()
    _stopped(lambda: rehearsals(path, [], scratch, stop, lambda event: None))
    export_config(path, scratch / "made", scratch)


def _stopped(act: Callable[[], Any]) -> None:
    try:
        act()
    except StoppedByUserError:
        pass


def _copy_each(source: Path, folder: Path, pattern: str) -> None:
    for path in sorted(source.glob(pattern)):
        (folder / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / path.stem / "workflow.json")


KEYS = ("dataset ", *CONFIG_KEYS, *DATA_KEYS)
NODES = ("node ", *KEYS)

READERS = {
    "configurations": Reader(make=make_configs, read=read_config, names=KEYS),
    "captions": Reader(make=make_captions, read=read_captions),
    "pictures": Reader(make=make_pictures, read=read_pictures),
    "videos": Reader(make=make_videos, read=read_videos),
    "pairs": Reader(make=make_pairs, read=read_pairs),
    "LoRA files": Reader(make=make_loras, read=read_loras),
    "single files": Reader(make=make_single_files, read=read_single_files),
    "model folders": Reader(make=make_models, read=read_models),
    "prompts": Reader(make=make_prompts, read=read_prompt, names=NODES),
    "workflows": Reader(make=make_workflows, read=read_workflow, names=NODES),
}
