"""A captioned folder of pictures becomes a training set. All faults are told at once."""

from __future__ import annotations

from ..settings.dataset import DatasetConfig
from .captions import missing_faults, nameless_warnings, read_captions
from .folder import duplicate_faults, empty_faults, folder_faults, only_sound, read_sizes, scan_folder
from .folder_records import records_of
from .records import Source, TrainingSet


def survey_pictures(config: DatasetConfig) -> TrainingSet:
    """The pictures of a folder that are sound, and what is wrong with the others in `faults`."""
    sources = (Source(targets=config),)
    faults = folder_faults("pictures", config, "image")
    if config.caption_strategy == "none":
        faults.append(
            f"Dataset {config.id!r} has caption_strategy 'none'; pictures to learn need captions. Choose textfile,"
            " filename, instanceprompt, json or csv."
        )
    if faults:
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    folder = scan_folder("pictures", config)
    if not folder.pictures:
        return TrainingSet(sources=sources, records=(), faults=tuple(empty_faults(folder)))
    captions = read_captions(folder)
    sizes, size_faults = read_sizes(folder)
    faults = duplicate_faults(folder.role, folder.path, folder.duplicates)
    missing = [name for name in folder.names if name not in captions.by_name]
    faults += [*captions.faults, *missing_faults(folder, captions, missing), *size_faults]
    usable = only_sound(folder, captions.by_name, sizes) if faults else folder
    return TrainingSet(
        sources=sources,
        records=records_of(usable, sizes, captions.by_name),
        warnings=tuple(nameless_warnings(folder)),
        faults=tuple(faults),
    )
