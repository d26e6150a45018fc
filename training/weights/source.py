"""Where a model's folder comes from, whether it is the right one, and what identifies its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..events import Callbacks
from ..files import sha256_of_file, sha256_of_json
from ..settings.flavours import Flavour, released_repo_id
from ..settings.geometry import LATENTS_PER_TOKEN
from ..settings.model import ModelConfig, flavour_of
from .checkpoint_files import (
    check_component,
    class_name,
    read_config,
    read_header,
    text_setting,
    weight_files,
    weights_identity,
)
from .spec import ModelFiles, ModelSpec

CLASSES = {
    "transformer": "LongCatImageTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
}

PREPROCESSING = {
    "tokenizer": ("tokenizer_config.json",),
    "text_processor": ("preprocessor_config.json", "processor_config.json"),
}
"""Folder to the file that must be there; transformers 5 writes a processor under the second name."""


def resolve_folder(spec: ModelSpec, callbacks: Callbacks) -> Path:
    """The checked diffusers folder of `spec`: its own, else one in `models_dirs`, else written (tiny) or downloaded.

    Raises:
        ModelError: the folder is incomplete or of another model, or the download failed.
        StoppedByUserError: stopped while downloading; the next call continues it.
    """
    folder = spec.folder or _folder_of_flavour(spec, callbacks)
    check_folder(folder, spec.config)
    return folder


def present_folder(spec: ModelSpec) -> Path | None:
    """The folder that `resolve_folder` would take, checked; None: it would have to be downloaded or written.

    Raises:
        ModelError: it is incomplete or of another model, or something else is in the download's place.
    """
    flavour = flavour_of(spec.config)
    folder = spec.folder or found_folder(flavour, spec.models_dirs)
    if folder is None:
        _refuse_foreign(spec.models_dirs[0] / flavour.folder_name, flavour)
    else:
        check_folder(folder, spec.config)
    return folder


def found_folder(flavour: Flavour, models_dirs: Sequence[Path]) -> Path | None:
    """The flavour's diffusers folder in the first of `models_dirs` that has it; unchecked."""
    candidates = (models_dir / flavour.folder_name for models_dir in models_dirs)
    return next((folder for folder in candidates if (folder / flavour.mark).is_file()), None)


def check_folder(folder: Path, config: ModelConfig) -> None:
    """Refuses a folder that is not a complete diffusers checkpoint of `config.model_flavour`; loads no weights.

    Raises:
        ModelError: naming what was found and what is wanted.
    """
    if flavour_of(config).draws_clips:
        from . import video_components

        video_components.check_folder(folder)
        return
    _check_pipeline(folder, config)
    configs = {component: read_config(folder / component / "config.json") for component in CLASSES}
    for component, wanted in CLASSES.items():
        found = class_name(configs[component])
        if found != wanted:
            raise ModelError(f"{folder / component} holds a {found}; {config.model_family} needs a {wanted} there.")
    for part in (*CLASSES, *PREPROCESSING):
        check_component(folder / part)
    _check_widths(folder, configs)
    for name, files in PREPROCESSING.items():
        if not any((folder / name / file).is_file() for file in files):
            raise ModelError(
                f"{folder / name} has no {' or '.join(files)}. The folder is incomplete: copy or download it again."
            )
    for component in CLASSES:
        for path in weight_files(folder / component):
            read_header(path)


def check_files(files: ModelFiles) -> None:
    """Refuses single files that are not the three parts of one LongCat-Image model; reads headers only.

    Raises:
        ModelError: naming what was found and what is wanted.
    """
    from . import single_file

    parts = (single_file.inspect(path) for path in (files.transformer, files.vae, files.text_encoder))
    single_file.check_parts(*parts)
    single_file.find_tokenizer([files.tokenizer])


def component_config(spec: ModelSpec, component: str, callbacks: Callbacks) -> dict[str, Any]:
    """The settings of a component, from its config.json or its single file's header.

    Raises:
        ModelError, StoppedByUserError: as `resolve_folder`.
    """
    if spec.files is None:
        folder = resolve_folder(spec, callbacks)
        if component == "transformer" and flavour_of(spec.config).draws_clips:
            from .video_components import transformer_config

            return transformer_config(folder)
        return read_config(folder / component / "config.json")
    from .single_file import inspect

    return inspect(getattr(spec.files, component)).config


def identity_of(spec: ModelSpec, component: str, callbacks: Callbacks) -> str:
    """`component_identity` of wherever the spec's weights are.

    Raises:
        ModelError, StoppedByUserError: as `resolve_folder`.
    """
    if spec.files is None:
        folder = resolve_folder(spec, callbacks)
        return component_identity(folder, _subfolder(folder, spec.config, component))
    path = getattr(spec.files, component)
    read_header(path)
    parts: dict[str, Any] = {"weights": weights_identity(path)}
    if component == "text_encoder":
        parts["tokenizer"] = _hashes(spec.files.tokenizer)
    return sha256_of_json(parts)


def component_identity(folder: Path, component: str) -> str:
    """Hash that changes with the component's settings or weights, whatever the folder is called.

    The text encoder's covers the tokenizer and the image processor: all three decide the embeddings.

    Raises:
        ModelError: the component is missing or damaged.
    """
    parts: dict[str, Any] = {"config": _said_once(read_config(folder / component / "config.json"))}
    for path in weight_files(folder / component):
        read_header(path)
        parts[path.name] = weights_identity(path)
    if component == "text_encoder":
        for name in PREPROCESSING:
            # LongCat-Video's text encoder sees no pictures.
            if (folder / name).is_dir():
                parts[name] = _hashes(folder / name)
    return sha256_of_json(parts)


def _said_once(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without transformers 4's spelling of the rotary settings, where transformers 5's says the same."""
    scaling = config.get("rope_scaling")
    older = {"rope_theta": config.get("rope_theta"), **(scaling if isinstance(scaling, dict) else {})}
    twice = ("rope_theta", "rope_scaling") if older == config.get("rope_parameters") else ()
    return {
        name: _said_once(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in twice
    }


def _subfolder(folder: Path, config: ModelConfig, component: str) -> str:
    if component == "transformer" and flavour_of(config).draws_clips:
        from .video_components import transformer_folder

        return transformer_folder(folder).name
    return component


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model"))
    return {path.name: sha256_of_file(path) for path in files}


def _folder_of_flavour(spec: ModelSpec, callbacks: Callbacks) -> Path:
    flavour = flavour_of(spec.config)
    found = found_folder(flavour, spec.models_dirs)
    new = spec.models_dirs[0] / flavour.folder_name
    if flavour.is_twin:
        return _twin(found or new, flavour)
    return found or _downloaded(flavour, new, callbacks)


def _twin(folder: Path, flavour: Flavour) -> Path:
    from .twins import is_outdated, write_twin

    if is_outdated(folder) or not (folder / flavour.mark).is_file():
        _refuse_foreign(folder, flavour)
        write_twin(folder)
    return folder


def _downloaded(flavour: Flavour, folder: Path, callbacks: Callbacks) -> Path:
    from .download import download

    _refuse_foreign(folder, flavour)
    partial = folder.with_name(f"{folder.name}.partial")
    download(flavour.repo_id, partial, callbacks)
    partial.replace(folder)
    return folder


def _refuse_foreign(folder: Path, flavour: Flavour) -> None:
    """A folder of that name without a model in it is someone's work, or a copy under way: never overwritten."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / flavour.mark).is_file():
        raise ModelError(
            f"{folder} exists but has no {flavour.mark}, so it is no complete model folder. Complete it, or move it"
            " away so that it can be made again."
        )


def _check_pipeline(folder: Path, config: ModelConfig) -> None:
    wanted = flavour_of(config).pipeline
    index = folder / "model_index.json"
    found = class_name(read_config(index)) if index.is_file() else None
    if found == wanted:
        return
    there = f"a {found}" if found else f"no model_index.json, but {_contents(folder)}"
    raise ModelError(
        f"{folder} holds {there}; model_family {config.model_family}, flavour {config.model_flavour} needs a diffusers"
        f" folder of a {wanted}, such as {released_repo_id(flavour_of(config))}. Choose that folder, or the family and"
        " flavour of this one."
    )


def _contents(folder: Path) -> str:
    """What is in a folder that is no diffusers folder: the classes its config.json files name, else its entries."""
    classes = set()
    for path in sorted({*folder.glob("config.json"), *folder.glob("*/config.json")})[:20]:
        try:
            classes.add(f"{class_name(read_config(path))} in {path.relative_to(folder)}")
        except ModelError:
            continue
    names = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else []
    return ", ".join(sorted(classes)) or ", ".join(names) or "nothing"


def _check_widths(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    width = text_setting(configs["text_encoder"], "hidden_size")
    joint_width = configs["transformer"].get("joint_attention_dim")
    if type(width) is not int or width != joint_width:
        raise ModelError(
            f"{folder}: the text encoder is {str(width)[:40]} wide, the transformer takes {str(joint_width)[:40]}."
            " These parts are of different models: copy or download the folder again."
        )
    latent_channels = configs["vae"].get("latent_channels")
    in_channels = configs["transformer"].get("in_channels")
    if type(latent_channels) is not int or in_channels != LATENTS_PER_TOKEN * latent_channels:
        raise ModelError(
            f"{folder}: the VAE has {str(latent_channels)[:40]} latent channels, the transformer takes"
            f" {str(in_channels)[:40]} ({LATENTS_PER_TOKEN} times as many are needed). These parts are of different"
            " models: copy or download the folder again."
        )
    _check_transformer(folder / "transformer" / "config.json", configs["transformer"])
    for name in ("scaling_factor", "shift_factor"):
        value = configs["vae"].get(name)
        if type(value) not in (int, float) or (name == "scaling_factor" and value == 0):
            raise ModelError(
                f"{folder / 'vae' / 'config.json'} has {name} {str(value)[:40]}; it must be a number, as latents are"
                " scaled by it. Copy or download the folder again."
            )


def _check_transformer(path: Path, config: dict[str, Any]) -> None:
    """Positions are computed from these at the first step only: with others a run would end after its caching."""
    # Left out, they are the released ones (diffusers: transformer_longcat_image.py).
    width = config.get("attention_head_dim", 128)
    axes = config.get("axes_dims_rope", [16, 56, 56])
    counts = isinstance(axes, list) and len(axes) == 3 and all(type(axis) is int and axis > 0 for axis in axes)
    if not counts or sum(axes) != width or any(axis % 2 for axis in axes):
        raise ModelError(
            f"{path} has axes_dims_rope {str(axes)[:40]} for heads of {str(width)[:40]}; it must be three even numbers"
            " with that sum. Copy or download the folder again."
        )
