"""The families by name."""

from __future__ import annotations

from ..errors import ModelError
from ..settings.flavours import FAMILY_NAMES, IMAGE_FAMILY, VIDEO_FAMILY
from .contract import Family


def family_of(name: str) -> Family:
    """The family called `name` (a key of `ModelConfig.model_family`).

    Raises:
        ModelError: there is no such family.
    """
    if name == IMAGE_FAMILY:
        from .image.family import LongCatImageFamily

        return LongCatImageFamily()
    if name == VIDEO_FAMILY:
        from .video.family import LongCatVideoFamily

        return LongCatVideoFamily()
    raise ModelError(f"model_family is {name!r}; known families: {', '.join(FAMILY_NAMES)}.")
