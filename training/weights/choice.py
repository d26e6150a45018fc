"""What a user's choice of model comes down to: a diffusers folder, ComfyUI's single files, or a download later on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ModelError
from ..events import Callbacks, WarningRaised
from ..paths import AllowedRoots
from ..settings.flavours import FLAVOURS, Flavour, released_repo_id
from ..settings.model import ModelConfig, flavour_of
from .single_file import FoundFile, Kind, find_in, find_tokenizer, known_file
from .source import check_files, check_folder, found_folder
from .spec import ModelFiles, ModelSpec

AUTO = "auto"

NEEDED: dict[Kind, str] = {
    "vae": "the VAE: ae.safetensors",
    "text_encoder": "the text encoder: qwen_2.5_vl_7b.safetensors or qwen_2.5_vl_7b_fp8_scaled.safetensors",
}


@dataclass(frozen=True, kw_only=True)
class SingleFileDirs:
    """Folders of single files, by what is looked for in them; they need not exist."""

    transformer: tuple[Path, ...]
    vae: tuple[Path, ...]
    text_encoder: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    """Each either holds vocab.json and its companions or does not; see `single_file.find_tokenizer`."""


def offered_files(kind: Kind, dirs: SingleFileDirs) -> dict[str, FoundFile]:
    """Files that their names suggest, by path below their folder (with `/`); of equal paths the first folder's."""
    offered: dict[str, FoundFile] = {}
    for folder in getattr(dirs, kind):
        for file in find_in([folder]):
            if file.kind == kind:
                offered.setdefault(file.path.relative_to(folder).as_posix(), file)
    return offered


def choose_model(
    config: ModelConfig,
    models_dirs: tuple[Path, ...],
    roots: AllowedRoots,
    dirs: SingleFileDirs,
    callbacks: Callbacks,
) -> ModelSpec:
    """The checked spec of `config`; weights are not read.

    `auto` takes the flavour's diffusers folder in `models_dirs`, else its single file in `dirs`, else leaves the
    download (or the writing of a twin) to the stage that needs it. The flavour's hub id passes over single files.

    Args:
        roots: where a path that the user wrote may lie.

    Raises:
        ConfigError: a VAE or text encoder file is chosen without a transformer file, or the hub id of another flavour.
        ModelError: the folder or one of the files is missing, damaged or of another model.
        PathError: the path does not exist or lies outside `roots`.
    """
    flavour = flavour_of(config)
    place = _place_of_clips(config, flavour, roots) if flavour.draws_clips else _place(config, models_dirs, roots, dirs)
    if place is None or place.is_dir():
        _refuse_single_parts(config, place)
        if place is not None:
            check_folder(place, config)
        return ModelSpec(config=config, models_dirs=models_dirs, folder=place)
    known = known_file(place)
    if known is not None and known.flavour not in (None, config.model_flavour):
        callbacks.on_event(
            WarningRaised(
                message=f"{place.name} looks like flavour {known.flavour}, model_flavour is {config.model_flavour}."
                " The files of the flavours are built alike, so this cannot be checked: if it is wrong, correct one."
            )
        )
    files = _with_parts(place, config, dirs)
    check_files(files)
    return ModelSpec(config=config, models_dirs=models_dirs, files=files)


def _place(
    config: ModelConfig, models_dirs: tuple[Path, ...], roots: AllowedRoots, dirs: SingleFileDirs
) -> Path | None:
    """The folder or transformer file that is meant; None: the flavour's own folder, there or to come."""
    flavour = flavour_of(config)
    offered = offered_files("transformer", dirs)
    if config.transformer_file != AUTO:
        return _named("transformer", config.transformer_file, offered, dirs)
    name = config.pretrained_model_name_or_path
    if name == AUTO:
        fitting = (file.path for file in offered.values() if file.flavour == config.model_flavour)
        return None if found_folder(flavour, models_dirs) else next(fitting, None)
    if name == flavour.repo_id:
        return None
    _refuse_id_of_another_flavour(name, config)
    if name in offered:
        return offered[name].path
    return roots.resolve_existing(name, ModelConfig.named("pretrained_model_name_or_path"))


def _place_of_clips(config: ModelConfig, flavour: Flavour, roots: AllowedRoots) -> Path | None:
    """As `_place`; only whole folders are read."""
    name = config.pretrained_model_name_or_path
    chosen = config.transformer_file if config.transformer_file != AUTO else name
    if chosen.lower().endswith(".safetensors"):
        raise ConfigError(
            f"Load LongCat was given the single file {chosen!r}, but {config.model_family} is read from a whole folder"
            f" only. Leave transformer_file on auto, and give the folder of {released_repo_id(flavour)}, or auto, which"
            " downloads it."
        )
    if name in (AUTO, flavour.repo_id):
        return None
    _refuse_id_of_another_flavour(name, config)
    place = roots.resolve_existing(name, ModelConfig.named("pretrained_model_name_or_path"))
    if not place.is_dir():
        raise ConfigError(
            f"{config.named('pretrained_model_name_or_path')} is {place}, a file; {config.model_family} is read from a"
            f" folder such as that of {released_repo_id(flavour)}."
        )
    return place


def _refuse_id_of_another_flavour(name: str, config: ModelConfig) -> None:
    other = next((key for key, flavour in FLAVOURS.items() if flavour.repo_id == name), None)
    if other is not None:
        family, flavour = other
        also = f"model_family {family} and " if family != config.model_family else ""
        raise ConfigError(
            f"{config.named('pretrained_model_name_or_path')} is {name!r}, which is flavour {flavour}, but"
            f" model_flavour is {config.model_flavour}. Choose {also}model_flavour {flavour}, or leave the path on"
            " auto."
        )


def _with_parts(transformer: Path, config: ModelConfig, dirs: SingleFileDirs) -> ModelFiles:
    parts: dict[Kind, Path] = {}
    missing = []
    for kind, chosen in (("vae", config.vae_file), ("text_encoder", config.text_encoder_file)):
        offered = offered_files(kind, dirs)
        if chosen != AUTO:
            parts[kind] = _named(kind, chosen, offered, dirs)
        elif offered:
            parts[kind] = next(iter(offered.values())).path
        else:
            missing.append(f"{NEEDED[kind]} in {getattr(dirs, kind)[0]}")
    if missing:
        raise ModelError(
            f"{transformer} is a transformer alone, and other parts of the model are missing. Put there"
            f" {'; '.join(missing)}. Or choose a whole diffusers folder in pretrained_model_name_or_path, such as"
            f" {released_repo_id(flavour_of(config))}, which is downloaded."
        )
    return ModelFiles(
        transformer=transformer,
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=find_tokenizer(dirs.tokenizer),
    )


def _named(kind: Kind, name: str, offered: dict[str, FoundFile], dirs: SingleFileDirs) -> Path:
    if name not in offered:
        raise ModelError(
            f"{ModelConfig.named(f'{kind}_file')} is {name!r}; there is no such file of a known name below"
            f" {', '.join(map(str, getattr(dirs, kind)))}. It must be one of {', '.join((AUTO, *offered))}."
        )
    return offered[name].path


def _refuse_single_parts(config: ModelConfig, folder: Path | None) -> None:
    chosen = {"vae_file": config.vae_file, "text_encoder_file": config.text_encoder_file}
    for option, name in chosen.items():
        if name != AUTO:
            raise ConfigError(
                f"{config.named(option)} is {name!r}, but the transformer comes from the diffusers folder"
                f" {folder or flavour_of(config).folder_name}, which has its own. Choose transformer_file"
                " too, or leave this on auto."
            )
