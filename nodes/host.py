"""What the nodes need from the program they run in. ComfyUI's is in bridge.py, the terminal's in terminal/host.py."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..training.events import Callbacks
from ..training.paths import AllowedRoots

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from ..training.weights.choice import SingleFileDirs


class Host(Protocol):
    """Device, folders, reporting and the right frame of mind for torch."""

    def device(self) -> torch.device:
        """Where models run."""
        ...

    def data_roots(self) -> AllowedRoots:
        """Folders that datasets may lie in."""
        ...

    def model_roots(self) -> AllowedRoots:
        """Folders that a diffusers model folder, or a transformer's single file, may lie in."""
        ...

    def models_dirs(self) -> tuple[Path, ...]:
        """`models/longcat` folders; the first is written to."""
        ...

    def single_file_dirs(self) -> SingleFileDirs:
        """Folders of single files in the host's own order, and of Qwen2.5's tokenizer."""
        ...

    def lora_dirs(self) -> tuple[Path, ...]:
        """Folders of LoRA files; the first is written to."""
        ...

    def lora_names(self) -> list[str]:
        """LoRA files below `lora_dirs`, as paths relative to their folder; asked often, so it must be cheap."""
        ...

    def runs_dir(self) -> Path:
        """`output/longcat`: one folder a run."""
        ...

    def cache_dir(self) -> Path:
        """`output/longcat-cache`: relative cache folders of a workflow lie below it."""
        ...

    def cache_roots(self) -> AllowedRoots:
        """Where cache folders may lie; relative ones below `cache_dir`."""
        ...

    def callbacks(self, node_id: str | None) -> Callbacks:
        """Progress, previews and the stop button of node `node_id`: for what loads nothing."""
        ...

    def preview(self, latents: Tensor) -> Image | None:
        """A quick picture of (normalised) latents, of a picture [1, C, h, w] or of one frame of a clip [1, C, 1, h, w];
        None where nobody is looking."""
        ...

    def work(self, node_id: str | None) -> contextlib.AbstractContextManager[Callbacks]:
        """Around everything that loads, encodes, trains or samples: other models out of memory, inference mode off,
        gradients off (the trainer switches them on), memory given back at the end, also after an error. Gives the
        node's `callbacks`. A `StoppedByUserError` leaves it as the host's own kind of interruption, too little memory
        or disk as `machine_faults_named` says it."""
        ...


_current: contextvars.ContextVar[Host | None] = contextvars.ContextVar("longcat_host", default=None)


def current_host() -> Host:
    """The host set by `use_host`, else ComfyUI."""
    host = _current.get()
    if host is None:
        from .bridge import ComfyHost

        host = ComfyHost()
    return host


@contextlib.contextmanager
def use_host(host: Host) -> Iterator[None]:
    """Runs nodes inside `host` instead of ComfyUI."""
    token = _current.set(host)
    try:
        yield
    finally:
        _current.reset(token)
