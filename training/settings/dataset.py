"""Folders of pictures and videos, and what is taken from them."""

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
    parse_resolutions,
)
from .option import Checked, option

TARGETS_FOLDER, REFERENCES_FOLDER, TEXT_FOLDER = "vae/targets", "vae/references", "text"
"""Defaults of the cache folders of a dataset, relative to the host's cache folder."""


@dataclass(kw_only=True, frozen=True)
class ClipConfig(Checked):
    """Which clips are taken from the videos of a dataset; most names are those of SimpleTuner's section `video`."""

    node = "LongCat Dataset"

    num_frames: int = option(
        93, f"Frames of a clip (guide: 93, which are 6.2 s); {FRAME_RULE}.", low=1, high=MOST_FRAMES, step=FRAME_STEP
    )
    min_frames: int = option(
        0,
        "Only with bucket_strategy resolution_frames: the fewest frames of a clip; a video with fewer is refused."
        " 0: as many as num_frames.",
        low=0,
        high=MOST_FRAMES,
        step=1,
    )
    fps: float = option(
        FRAME_RATE,
        "Frames per second at which the clips are taken. The model draws 15 per second, so 15 keeps movements at"
        " their speed.",
        low=1.0,
        high=120.0,
        step=0.01,
    )
    clip_extraction: str = option(
        "first",
        "Which part of a video becomes the clip. first: its beginning; middle: its middle; random: any part, the"
        " same one every time; multiple: as many clips as fit, one after another.",
        choices=("first", "middle", "random", "multiple"),
    )
    bucket_strategy: str = option(
        "aspect_ratio",
        "aspect_ratio: every clip has num_frames. resolution_frames: a shorter video gives a shorter clip of at"
        " least min_frames; clips of equal length share a bucket.",
        choices=("aspect_ratio", "resolution_frames"),
    )
    frame_interval: int = option(
        FRAME_STEP,
        "The frames of shorter clips are cut down to a multiple of this, plus one. A larger value makes fewer buckets.",
        low=FRAME_STEP,
        high=MOST_FRAMES - 1,
        step=FRAME_STEP,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.named("num_frames"), self.num_frames)

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
        " inside a folder that the server's owner allows (LONGCAT_DATA_ROOTS).",
    )
    dataset_type: str = option(
        "image",
        "image: pictures to learn. video: videos to learn (video files, animations, or subfolders of pictures)."
        " conditioning: reference pictures for edits, or first frames for videos.",
        choices=("image", "conditioning", "video"),
    )
    caption_strategy: str = option(
        "textfile",
        "Where captions and instructions come from. textfile: a .txt file with the picture's name; filename: the"
        " name itself; instanceprompt: instance_prompt for all; json, csv: one table in the folder (or a .json with"
        " the picture's name); none: no captions (references).",
        choices=("textfile", "filename", "instanceprompt", "json", "csv", "none"),
    )
    resolution: str = option(
        "768",
        "Size of the pictures (guide: 768 or 1024; videos 480). One number; several with commas (512,1024: every"
        " picture at each); or WIDTHxHEIGHT sizes (1024x1024,1344x768: each picture gets the size that is nearest"
        " to its aspect, once for every area).",
    )
    aspect_bucket_alignment: int = option(
        BUCKET_ALIGNMENT,
        "In px. The sides of all buckets are multiples of this. Keep 64, the grid the model was trained on.",
        low=BUCKET_ALIGNMENT,
        high=512,
        step=BUCKET_ALIGNMENT,
        advanced=True,
    )
    repeats: int = option(
        0, "How many more times each picture is seen per epoch (0: once).", low=0, high=10_000, step=1, advanced=True
    )

    instance_prompt: str = option("", "Only with caption_strategy instanceprompt: the caption of all pictures.")
    resolution_type: str = option(
        "pixel_area",
        "What a number in resolution means. pixel_area: px, side of the square of the same area; pixel: px, the"
        " shorter side; area: megapixels (1 is 1024x1024).",
        choices=("pixel_area", "pixel", "area"),
        advanced=True,
    )
    crop_style: str = option(
        "center",
        "Which part is kept when a picture is cropped. center: the middle; corner: the top left; random: any part,"
        " always the same for a file name. A reference is cropped like its target.",
        choices=("center", "corner", "random"),
        advanced=True,
    )
    crop_aspect: str = option(
        "preserve",
        "preserve: each picture gets the bucket nearest to its own aspect. square: all are cropped to squares.",
        choices=("preserve", "square"),
        advanced=True,
    )
    is_i2v: bool = option(
        False,
        "Only for videos: train image-to-video, which continues from a given first frame. The first frame is the"
        " picture that Pair Datasets assigns, else the clip's own. With pictures from Pair Datasets this is always"
        " on.",
    )

    disable_multiline_split: bool = option(
        False,
        "A .txt of several lines is one caption. Off, as in SimpleTuner: each line is a caption of its own, and one of"
        " them is drawn each time that the picture or video is seen.",
        advanced=True,
    )
    recursive: bool = option(
        False,
        "Read sub-folders, too. A file in one is paired with the file of the same name in the sub-folder of the same"
        " name. (SimpleTuner always reads them.)",
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple(self.named("aspect_bucket_alignment"), self.aspect_bucket_alignment, BUCKET_ALIGNMENT)
        entries = parse_resolutions(self.resolution, self.resolution_type, self.named("resolution"))
        oblong = [entry for entry in entries if isinstance(entry, tuple) and entry[0] != entry[1]]
        if self.crop_aspect == "square" and oblong:
            raise ConfigError(
                f"{self.named('crop_aspect')} is square, but resolution holds {oblong[0][0]}x{oblong[0][1]}. Set"
                " crop_aspect to preserve, or give square sizes."
            )
        if self.caption_strategy == "instanceprompt" and not self.instance_prompt.strip():
            raise ConfigError(
                f"{self.named('instance_prompt')} is empty; caption_strategy instanceprompt needs it. Write the caption"
                " of all pictures there, or choose another caption_strategy."
            )
