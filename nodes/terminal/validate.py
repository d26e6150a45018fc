"""`longcat validate`: pictures or clips of the model, with the run's newest LoRA on it if there is one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.errors import ConfigError
from ...training.rehearsal.scale import tiny_run_name
from ...training.settings.validation import ValidationConfig
from ...training.simpletuner.datasets import SimpleTunerDataset
from ...training.simpletuner.read import SimpleTunerRun, read_files
from ..data import resolved
from ..graph.catalogue import EXAMPLE_CLIP_PROMPT, EXAMPLE_INSTRUCTION, EXAMPLE_PROMPT
from ..graph.core_nodes import SAMPLE_PICTURE, draw_sample, input_picture, node_classes
from ..graph.description import to_api
from ..graph.override import apply_settings
from ..graph.sampling import Sampling, sampling_graph
from ..graph.tiny import make_tiny
from ..host import use_host
from ..lora import NO_LORA
from .host import StopFlag, TerminalHost, say
from .train import show_notes

if TYPE_CHECKING:
    from ...training.settings.flavours import Flavour

FOLDER = "validation"
"""Below the output folder."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What one picture or clip is about."""

    prompt: str
    picture: Path | None = None
    """The picture to edit, or to begin the clip with."""


def validation_of(
    config: Path | None, overrides: Mapping[str, Any], home: Path, stop: StopFlag, tiny: bool = False
) -> tuple[dict[str, Any], TerminalHost]:
    """The API graph that samples as the configuration says, and the host to run it in.

    Without a data file (or without a configuration at all) a built-in prompt is drawn, or a drawn picture edited. Clips
    begin with the start frames of their dataset, if it has a set of them.

    Raises:
        ConfigError, DataError, PathError: whatever is wrong with keys, values and folders.
    """
    from ...training.settings.model import flavour_of

    run = read_files(config, overrides, needs_data=False)
    show_notes(run)
    host = TerminalHost(home, stop=stop, runs_dir=Path(run.runs_dir) if run.runs_dir else None)
    settings = run.train.validation or ValidationConfig()
    flavour = flavour_of(run.model)
    frames = settings.validation_num_video_frames if flavour.draws_clips else None
    with use_host(host):
        subjects = _subjects(run, settings, flavour, host)
        samples = [_sampling(settings, subject, index, run, frames) for index, subject in enumerate(subjects)]
        graph = to_api(sampling_graph("validate", run.model, NO_LORA, samples), node_classes())
        graph = make_tiny(graph) if tiny else graph
        # Without a configuration nobody has said which run is meant.
        if config is not None or overrides.keys() & {"run_name", "output_dir"}:
            lora = newest_lora(host, tiny_run_name(run.train.run_name) if tiny else run.train.run_name)
            graph = apply_settings(graph, [f"LongCatLoadLoRA.lora_name={json.dumps(lora)}"], node_classes())
            say(f"LoRA: {lora}")
        return graph, host


def newest_lora(host: TerminalHost, run_name: str) -> str:
    """Name of the LoRA file of the newest finished run `run_name` (or `run_name-2`, ...), as LongCatLoadLoRA has it.

    "none" if there is none.
    """
    from ...training.loop.run_folder import read_manifest

    found: list[tuple[float, str]] = []
    for folder in host.runs_dir().glob("*/"):
        base, _, number = folder.name.rpartition("-")
        if folder.name != run_name and not (base == run_name and number.isdecimal()):
            continue
        manifest = read_manifest(folder)
        if manifest is not None and manifest.lora:
            found.append((manifest.updated, f"{manifest.lora}.safetensors"))
    names = set(host.lora_names())
    return max(((when, name) for when, name in found if name in names), default=(0.0, NO_LORA))[1]


def _subjects(run: SimpleTunerRun, settings: ValidationConfig, flavour: Flavour, host: TerminalHost) -> list[_Subject]:
    sets = [
        each
        for each in run.eval_sets or run.sets
        if flavour.draws_clips or (each.references is not None) == flavour.needs_reference
    ]
    subjects = _records(sets, settings.num_samples) or [_built_in(flavour, host)]
    lines = [line.strip() for line in settings.validation_prompt.splitlines() if line.strip()]
    if lines and not any(subject.picture for subject in subjects):
        return [_Subject(prompt=line) for line in lines]
    return [
        # As in training: the last line holds for the rest.
        dataclasses.replace(subject, prompt=lines[min(index, len(lines) - 1)] if lines else subject.prompt)
        for index, subject in enumerate(subjects)
    ]


def _records(sets: Sequence[SimpleTunerDataset], count: int) -> list[_Subject]:
    """The first `count` different pictures of the datasets."""
    from ...training.data.sets import pair_datasets, scan_dataset

    found: dict[Path, _Subject] = {}
    for each in sets:
        targets = resolved(each.targets)
        pairs = pair_datasets(targets, resolved(each.references)) if each.references else scan_dataset(targets)
        for record in pairs.records:
            picture = record.references[0] if record.references else None
            found.setdefault(record.target, _Subject(prompt=record.caption, picture=picture))
    return list(found.values())[:count]


def _built_in(flavour: Flavour, host: TerminalHost) -> _Subject:
    if not flavour.needs_reference:
        return _Subject(prompt=EXAMPLE_CLIP_PROMPT if flavour.draws_clips else EXAMPLE_PROMPT)
    path = host.input_dir() / SAMPLE_PICTURE
    if not path.exists():
        draw_sample(path)
    return _Subject(prompt=EXAMPLE_INSTRUCTION, picture=input_picture(host, SAMPLE_PICTURE))


def _sampling(
    settings: ValidationConfig, subject: _Subject, index: int, run: SimpleTunerRun, frames: int | None
) -> Sampling:
    from ...training.settings.geometry import parse_size

    width, height = parse_size(settings.validation_resolution, "validation_resolution")
    if subject.picture is not None:
        from ...training.data.media import image_size
        from ...training.loop.previews import preview_size

        width, height = preview_size(image_size(subject.picture), settings.validation_resolution)
    if not subject.prompt.strip():
        raise ConfigError("validation_prompt is empty and the pictures have no captions. Write a prompt.")
    return Sampling(
        prompt=subject.prompt,
        negative_prompt=settings.validation_negative_prompt,
        picture=str(subject.picture) if subject.picture is not None else None,
        width=width,
        height=height,
        num_inference_steps=settings.validation_num_inference_steps,
        guidance_scale=settings.validation_guidance,
        # A noise of its own for each, as in training.
        seed=settings.validation_seed + index,
        filename_prefix=f"{FOLDER}/{run.train.run_name}",
        num_frames=frames,
    )
