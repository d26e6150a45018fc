"""The whole life of a small run, in a process that can be killed at any point: twin, caches, previews, training, LoRA.

Not by SIGKILL from outside: where that hits depends on how busy the machine is. Here the process ends at a number of
write operations or of seconds of its own processor time, as suddenly: nothing of Python runs any more.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents
from comfyui_longcat.training.caches.text import cache_text
from comfyui_longcat.training.data.sets import pair_datasets, scan_dataset
from comfyui_longcat.training.data.video_files import probe_video
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.files import TEMPORARY, sha256_of_file, sha256_of_json
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.tiny.examples import draw_example_clips, draw_example_pairs
from comfyui_longcat.training.weights.spec import ModelSpec
from diffusers import AutoencoderKL, AutoencoderKLWan, LongCatImageTransformer2DModel  # noqa: F401  (before the fork)
from safetensors import safe_open
from transformers import Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel  # noqa: F401

KINDS = ("edit", "clips")

NAME = "run"
STEPS = 4
SAMPLES = 3

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "shutil.copyfile"}
"""Audit events; each is raised right before its operation."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """When a life ends; each only if it gets that far."""

    before_write: int | None = None
    """Right before this write operation, counted from 1."""
    after_seconds: float | None = None
    """Of processor time."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a life was that nothing ended."""

    writes: int
    seconds: float
    """Of processor time."""
    losses: tuple[float, ...]
    lora: Path


def draw_data(kind: str, home: Path) -> None:
    """The folders that the run learns from."""
    draw = draw_example_pairs if kind == "edit" else draw_example_clips
    draw(home / "targets", home / "references")
    for folder in (home / "targets", home / "references"):
        for stem in sorted({path.stem for path in folder.iterdir()})[SAMPLES:]:
            for path in folder.glob(f"{stem}.*"):
                path.unlink()


def live(kind: str, home: Path, death: Death | None = None) -> Life | None:
    """Lives in a process of its own; None: it was killed.

    Raises:
        RuntimeError: it ended by itself, with an error.
    """
    here, there = _context().Pipe(duplex=False)
    process = _context().Process(target=_live, args=(kind, home, death or Death(), there))
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        result = None
    process.join()
    killed = process.exitcode in (-signal.SIGKILL, -signal.SIGPROF)
    if result is None and not killed:
        raise RuntimeError(f"the run ended with exit code {process.exitcode}; its traceback is in stderr")
    return result


def traces(home: Path) -> dict[str, Any]:
    """What has to be equal, whatever happened on the way."""
    samples = home / "runs" / NAME / "samples"
    caches = sorted((home / "cache").rglob("*.safetensors"))
    return {
        "runs": sorted(path.name for path in (home / "runs").iterdir()),
        "loras": {path.name: sha256_of_file(path) for path in (home / "loras").iterdir()},
        "previews": {path.name: sha256_of_file(path) for path in samples.glob("*.png")},
        # Not their bytes: libx264 writes other ones each time, from equal pictures.
        "clips": {path.name: probe_video(path).frames for path in samples.glob("*.mp4")},
        "caches": {str(path.relative_to(home)): _content_of(path) for path in caches},
        "leftovers": [str(path.relative_to(home)) for path in home.rglob(f"*{TEMPORARY}")],
    }


def _content_of(path: Path) -> str:
    """Hash of tensors and metadata, which a file holds in any order."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        return sha256_of_json([file.metadata(), {n: [str(t.dtype), t.float().tolist()] for n, t in tensors.items()}])


def a_day_passes(home: Path) -> None:
    """Makes old what lies where other processes may be writing; there only old leftovers are removed."""
    run = home / "runs" / NAME
    for path in home.rglob(f"*{TEMPORARY}"):
        if not path.is_relative_to(run):
            yesterday = path.stat().st_mtime - 2 * 24 * 3600
            os.utime(path, (yesterday, yesterday))


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _live(kind: str, home: Path, death: Death, connection: Any) -> None:
    torch.set_num_threads(1)
    count = _count_writes(home, death)
    if death.after_seconds is not None:
        # Its default is to end the process, which the system does by itself.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, death.after_seconds)
    result = _run(kind, home)
    connection.send(Life(writes=count[0], seconds=time.process_time(), losses=result.losses, lora=result.lora))


def _count_writes(home: Path, death: Death) -> list[int]:
    """[how many], counted on; only what this process writes below `home`, and what it names relative to a folder."""
    count = [0]

    def before(event: str, values: tuple) -> None:
        if (event == "open" and values[2] & WRITES and _is_below(home, values[0])) or event in CHANGES:
            count[0] += 1
            if count[0] == death.before_write:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)
    return count


def _is_below(home: Path, path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(home)


def _run(kind: str, home: Path) -> Any:
    """As the nodes of a training workflow do it."""
    edit = kind == "edit"
    model = {"model_flavour": "tiny-edit"} if edit else {"model_family": "longcat_video", "model_flavour": "tiny-video"}
    spec = ModelSpec(config=ModelConfig(base_model_precision="fp32", **model), models_dirs=(home / "models",))
    places = RunPlaces(runs_dir=home / "runs", lora_dir=home / "loras", device=torch.device("cpu"))
    folders = CacheFolders(targets=home / "cache" / "targets", references=home / "cache" / "references")
    cache, _ = cache_latents(_data(home, edit), spec, folders, places.device, NoCallbacks())
    cache, _ = cache_text(cache, spec, home / "cache" / "text", places.device, NoCallbacks())
    return train(_config(edit), spec, cache, places, NoCallbacks())


def _data(home: Path, edit: bool) -> Any:
    targets = DatasetConfig(id="targets", instance_data_dir=str(home / "targets"), resolution="64")
    if not edit:
        return scan_dataset(replace(targets, dataset_type="video", num_frames=5))
    references = replace(
        targets,
        id="references",
        instance_data_dir=str(home / "references"),
        dataset_type="conditioning",
        caption_strategy="none",
    )
    return pair_datasets(targets, references)


def _config(edit: bool) -> TrainConfig:
    size = {"validation_resolution": "64x64"}
    if not edit:
        size = {"validation_resolution": "96x64", "validation_num_video_frames": 5}
    return TrainConfig(
        run_name=NAME,
        max_train_steps=STEPS,
        learning_rate=1e-2,
        lora_rank=2,
        options=TrainingOptions(checkpoint_step_interval=1, checkpoints_total_limit=2, gradient_checkpointing=False),
        validation=ValidationConfig(validation_steps=2, validation_num_inference_steps=1, num_samples=1, **size),
    )
