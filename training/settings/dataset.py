"""Folders of pictures and videos, and what is taken from them. Imported from `config`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .geometry import (
    BUCKET_ALIGNMENT,
    FRAME_RATE,
    FRAME_RULE,
    FRAME_STEP,
    MOST_FRAMES,
    check_frames,
    check_multiple,
)
from .option import Checked, option
from .sizes import parse_resolutions


@dataclass(kw_only=True, frozen=True)
class ClipConfig(Checked):
    """Which clips are taken from the videos of a dataset; most names are those of SimpleTuner's section `video`."""

    num_frames: int = option(
        93, f"Frames of a clip (guide: 93, 6.2 s); {FRAME_RULE}.", low=1, high=MOST_FRAMES, step=FRAME_STEP
    )
    min_frames: int = option(
        0,
        "With bucket_strategy resolution_frames: the fewest frames that a shorter video may be cut down to. 0:"
        " num_frames, so shorter videos are refused.",
        low=0,
        high=MOST_FRAMES,
        step=1,
    )
    fps: float = option(
        FRAME_RATE,
        "Frames per second that the clips are taken at. The model draws 15 per second, so 15 keeps movements at their"
        " speed.",
        low=1.0,
        high=120.0,
        step=0.01,
    )
    clip_extraction: str = option(
        "first",
        "Where in a video its clip lies. first: at its beginning; middle; random: anywhere, the same place every time;"
        " multiple: as many clips as fit, one after another.",
        choices=("first", "middle", "random", "multiple"),
    )
    bucket_strategy: str = option(
        "aspect_ratio",
        "aspect_ratio: every clip has num_frames. resolution_frames: a shorter video gives a shorter clip, of"
        " min_frames at least, in a bucket of its own length.",
        choices=("aspect_ratio", "resolution_frames"),
    )
    frame_interval: int = option(
        FRAME_STEP,
        "Shorter clips are cut down to a multiple of this, plus one; a coarser step makes fewer buckets.",
        low=FRAME_STEP,
        high=MOST_FRAMES - 1,
        step=FRAME_STEP,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(f"{type(self).__name__}.num_frames", self.num_frames)

    @property
    def least_frames(self) -> int:
        """Fewer frames than these make a video too short."""
        if self.bucket_strategy == "aspect_ratio":
            return self.num_frames
        return min(self.min_frames, self.num_frames) or self.num_frames


@dataclass(kw_only=True, frozen=True)
class DatasetConfig(ClipConfig):
    """One folder of pictures or videos (LongCatDataset)."""

    id: str = option("dataset", "A name for this dataset, shown in reports.")
    instance_data_dir: str = option(
        "",
        "The folder of pictures or videos: a subfolder of ComfyUI's input or datasets folder, or an absolute path"
        " inside the folders that the server's owner allows (LONGCAT_DATA_ROOTS).",
    )
    dataset_type: str = option(
        "image",
        "image: pictures to learn; conditioning: reference pictures for them, or start frames for videos; video:"
        " videos to learn (video files, animations, or sub-folders of pictures).",
        choices=("image", "conditioning", "video"),
    )
    caption_strategy: str = option(
        "textfile",
        "Where captions and instructions come from. textfile: a .txt of the picture's name; filename: the name itself;"
        " instanceprompt: instance_prompt for all; json, csv: one table in the folder (or a .json of the picture's"
        " name); none: no captions (references).",
        choices=("textfile", "filename", "instanceprompt", "json", "csv", "none"),
    )
    resolution: str = option(
        "768",
        "Size of the pictures (guide: 768 or 1024; videos 480): one number, or several with commas (512,1024: every"
        " picture at each). Or WIDTHxHEIGHT sizes (1024x1024,1344x768): of those of about one area each picture gets"
        " the nearest.",
    )
    aspect_bucket_alignment: int = option(
        BUCKET_ALIGNMENT,
        "Px; bucket sides are multiples of this. Keep 64, the grid the model was trained on.",
        low=BUCKET_ALIGNMENT,
        high=512,
        step=BUCKET_ALIGNMENT,
        advanced=True,
    )
    repeats: int = option(
        0, "How many more times each picture is seen per epoch (0: once).", low=0, high=10_000, step=1, advanced=True
    )

    instance_prompt: str = option("", "The one caption of all pictures; for caption_strategy instanceprompt.")
    resolution_type: str = option(
        "pixel_area",
        "What a number in resolution means. pixel_area: px, side of the square of equal area; pixel: px, the shorter"
        " side; area: megapixels (1 is 1024x1024).",
        choices=("pixel_area", "pixel", "area"),
        advanced=True,
    )
    crop_style: str = option(
        "center",
        "Which part stays where a picture is cropped: the middle, the top left corner, or a part drawn by chance, the"
        " same each time for a file name. A reference is cropped like its target.",
        choices=("center", "corner", "random"),
        advanced=True,
    )
    crop_aspect: str = option(
        "preserve",
        "preserve: each picture gets the bucket nearest to its own aspect; square: all are cropped to squares.",
        choices=("preserve", "square"),
        advanced=True,
    )
    is_i2v: bool = option(
        False,
        "Videos only: learn to go on from the first frame (image-to-video). Clips that PairDatasets gives start frames"
        " always do; without these each clip starts from its own first frame.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("DatasetConfig.aspect_bucket_alignment", self.aspect_bucket_alignment, BUCKET_ALIGNMENT)
        entries = parse_resolutions(self.resolution, self.resolution_type, "DatasetConfig.resolution")
        oblong = [entry for entry in entries if isinstance(entry, tuple) and entry[0] != entry[1]]
        if self.crop_aspect == "square" and oblong:
            raise ConfigError(
                f"DatasetConfig.crop_aspect is 'square', but resolution holds {oblong[0][0]}x{oblong[0][1]}. Set"
                " crop_aspect to 'preserve', or give square sizes."
            )
        if self.caption_strategy == "instanceprompt" and not self.instance_prompt.strip():
            raise ConfigError(
                "DatasetConfig.instance_prompt is empty; caption_strategy 'instanceprompt' needs it. Write the caption"
                " of all pictures there, or choose another caption_strategy."
            )
