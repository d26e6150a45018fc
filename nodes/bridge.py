"""The only contact with ComfyUI: device, memory, folders, progress, interruption, and leaving inference mode."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.errors import StoppedByUserError
from ..training.events import (
    Event,
    ReportReady,
    RunFinished,
    RunStarted,
    SamplesReady,
    StageProgress,
    StepReport,
    WarningRaised,
    phase_after,
)
from ..training.paths import AllowedRoots
from ..training.resources import machine_faults_named

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from ..training.weights.choice import SingleFileDirs

logger = logging.getLogger(__name__)

ONE_OF_TWO = "Workflows of the other pack cannot run; remove the one that you do not need."

SECONDS_BETWEEN_MESSAGES = 0.25
"""A fast run has hundreds of steps a second; the browser gets a few of them."""

DATA_ROOTS_VARIABLE = "LONGCAT_DATA_ROOTS"
DATA_ROOTS_FILE = "longcat_data_roots.txt"
"""In the user folder's part that HTTP cannot reach: one allowed folder a line."""


def watch_node_ids(ours: Mapping[str, type]) -> None:
    """Lets ComfyUI's log name the ids that another pack has as well, once all packs are loaded: only one can be used.

    Without a ComfyUI that is starting, nothing happens.
    """
    core, server = sys.modules.get("nodes"), sys.modules.get("server")
    table = getattr(core, "NODE_CLASS_MAPPINGS", None)
    app = getattr(getattr(getattr(server, "PromptServer", None), "instance", None), "app", None)
    if table is None or app is None or app.frozen:
        return
    before = {node_id: table[node_id] for node_id in ours if node_id in table}

    async def warn(_app: Any) -> None:
        for pack, ids in _foreign(before, ours).items():
            logger.warning(
                "ComfyUI-LongCat replaces nodes of %s, which have the same ids: %s. %s", pack, ids, ONE_OF_TWO
            )
        for pack, ids in _foreign(table, ours).items():
            logger.warning(
                "%s replaces nodes of ComfyUI-LongCat, which have the same ids: %s. %s", pack, ids, ONE_OF_TWO
            )

    app.on_startup.append(warn)


def _foreign(table: Mapping[str, type], ours: Mapping[str, type]) -> dict[str, str]:
    """Pack -> those of our ids that it has in `table`."""
    found: dict[str, list[str]] = {}
    for node_id in ours:
        node = table.get(node_id, ours[node_id])
        if node is not ours[node_id]:
            found.setdefault(getattr(node, "RELATIVE_PYTHON_MODULE", node.__module__), []).append(node_id)
    return {pack: ", ".join(ids) for pack, ids in found.items()}


class ComfyHost:
    """`Host` inside ComfyUI."""

    def __init__(self) -> None:
        self._previewers: dict[int, Any] = {}

    def device(self) -> torch.device:
        import comfy.model_management

        return comfy.model_management.get_torch_device()

    def data_roots(self) -> AllowedRoots:
        import folder_paths

        given = [Path(folder_paths.get_input_directory()), *_registered("datasets")]
        return AllowedRoots(bases=tuple(given), roots=tuple(self._roots()))

    def model_roots(self) -> AllowedRoots:
        files = self.single_file_dirs().transformer
        return AllowedRoots(bases=(*self.models_dirs(), *files), roots=(*self._roots(), *files))

    def models_dirs(self) -> tuple[Path, ...]:
        import folder_paths

        standard = Path(folder_paths.models_dir) / "longcat"
        return tuple(dict.fromkeys([standard, *_registered("longcat")]))

    def single_file_dirs(self) -> SingleFileDirs:
        import comfy.model_management

        from ..training.weights.choice import SingleFileDirs
        from ..training.weights.single_file import TOKENIZER_IN_COMFYUI

        text_encoders = tuple(_registered("text_encoders"))
        # Where ComfyUI's code is; its base folder may be another.
        root = Path(comfy.model_management.__file__).parents[1]
        return SingleFileDirs(
            transformer=tuple(_registered("diffusion_models")),
            vae=tuple(_registered("vae")),
            text_encoder=text_encoders,
            tokenizer=(root / TOKENIZER_IN_COMFYUI, *(folder / TOKENIZER_IN_COMFYUI.name for folder in text_encoders)),
        )

    def lora_dirs(self) -> tuple[Path, ...]:
        return tuple(_registered("loras"))

    def lora_names(self) -> list[str]:
        import folder_paths

        # ComfyUI keeps this list until a folder changes.
        return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]

    def runs_dir(self) -> Path:
        return _output_dir() / "longcat"

    def cache_dir(self) -> Path:
        return _output_dir() / "longcat-cache"

    def cache_roots(self) -> AllowedRoots:
        own = self.cache_dir()
        return AllowedRoots(bases=(own,), roots=(own, *_owner_roots()))

    def callbacks(self, node_id: str | None) -> ComfyCallbacks:
        return ComfyCallbacks(node_id)

    def preview(self, latents: Tensor) -> Image | None:
        import comfy.latent_formats
        import latent_preview

        if latents.ndim not in self._previewers:
            # LongCat-Image has the latents of Flux, LongCat-Video (with a frame axis) those of Wan 2.1, so ComfyUI's
            # own preview settings and decoders fit.
            formats = comfy.latent_formats
            latent_format = formats.Wan21() if latents.ndim == 5 else formats.Flux()
            self._previewers[latents.ndim] = latent_preview.get_previewer(latents.device, latent_format)
        previewer = self._previewers[latents.ndim]
        return previewer.decode_latent_to_preview(latents) if previewer else None

    @contextlib.contextmanager
    def work(self, node_id: str | None) -> Iterator[ComfyCallbacks]:
        import comfy.model_management as management
        import torch

        callbacks = self.callbacks(node_id)
        management.unload_all_models()
        management.soft_empty_cache()
        try:
            # ComfyUI runs nodes in inference mode, and weights born there could never be trained.
            with torch.inference_mode(False), torch.no_grad(), machine_faults_named(lambda: callbacks.phase):
                yield callbacks
        except StoppedByUserError as stopped:
            callbacks.announce_end("stopped", str(stopped))
            management.interrupt_current_processing(False)
            raise management.InterruptProcessingException() from None
        except Exception as error:
            # What CUDA reports late stays pending until ComfyUI takes it away; the next call would raise it again.
            management.is_oom(error.__cause__ or error)
            callbacks.announce_end("failed", str(error))
            raise
        finally:
            gc.collect()
            management.soft_empty_cache()

    def _roots(self) -> list[Path]:
        import folder_paths

        own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.models_dir]
        return [*map(Path, own), *_registered("datasets"), *_registered("longcat"), *_owner_roots()]


class ComfyCallbacks:
    """Shows events on one node: progress bar, previews, a line of text, and messages for the loss chart."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id = node_id
        self.phase = "at the start"
        self._run: RunStarted | None = None
        self._step = 0
        self._last_message = 0.0
        self._stopped = False
        self._bar: Any = None
        self._bar_name = ""

    def on_event(self, event: Event) -> None:
        self.phase = phase_after(event, self.phase)
        if isinstance(event, StageProgress):
            self._show_progress(event.stage, event.done, event.total, event.preview)
            if self._is_due(event.done == event.total):
                self._say(f"{event.stage} {event.done}/{event.total}")
        elif isinstance(event, RunStarted):
            self._run, self._step = event, event.first_step - 1
            self._announce("resumed" if event.resumed else "started")
        elif isinstance(event, StepReport):
            self._on_step(event)
        elif isinstance(event, SamplesReady):
            self._announce("samples")
            for image in event.images:
                self._show_progress("training", self._step, self._run.total_steps if self._run else 1, image)
        elif isinstance(event, WarningRaised):
            self._say(f"Warning: {event.message}")
        elif isinstance(event, RunFinished):
            self._step = event.step
            self._announce("finished")
            self._say(f"finished at step {event.step}: {event.lora.name}")
        elif isinstance(event, ReportReady):
            self._say(event.report)

    def should_stop(self) -> bool:
        import comfy.model_management

        self._stopped = self._stopped or comfy.model_management.processing_interrupted()
        return self._stopped

    def announce_end(self, state: str, message: str) -> None:
        """Reports to the chart that the run did not finish; nothing before a run has started."""
        if self._run is not None:
            self._announce(state, message)

    def _on_step(self, report: StepReport) -> None:
        self._step = report.step
        self._show_progress("training", report.step, report.total_steps)
        if not self._is_due(report.step == report.total_steps):
            return
        self._say(_status_line(report))
        figures = {"loss": report.loss, "learning_rate": report.learning_rate, "seconds": report.seconds}
        self._send("longcat.step", figures | {"step": report.step, "total": report.total_steps})

    def _is_due(self, is_last: bool) -> bool:
        now = time.monotonic()
        if now - self._last_message < SECONDS_BETWEEN_MESSAGES and not is_last:
            return False
        self._last_message = now
        return True

    def _show_progress(self, stage: str, done: int, total: int, preview: Image | None = None) -> None:
        import comfy.model_management
        import comfy.utils
        from comfy.cli_args import args

        if self._bar is None or stage != self._bar_name:
            # A bar never goes back, so each stage gets its own.
            self._bar, self._bar_name = comfy.utils.ProgressBar(total, node_id=self.node_id), stage
        picture = ("JPEG", preview.convert("RGB"), args.preview_size) if preview is not None else None
        try:
            self._bar.update_absolute(done, total, picture)
        except comfy.model_management.InterruptProcessingException:
            # The bar takes the interruption for itself; a run must be saved before it ends, at its next step.
            self._stopped = True

    def _announce(self, state: str, message: str = "") -> None:
        self._send("longcat.run", {"state": state, "step": self._step, "message": message})

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        from server import PromptServer

        server = PromptServer.instance
        run = self._run.run if self._run else ""
        server.send_sync(kind, {"node": self.node_id, "run": run} | content, server.client_id)

    def _say(self, text: str) -> None:
        from server import PromptServer

        if self.node_id is not None:
            PromptServer.instance.send_progress_text(text, self.node_id)


def _status_line(report: StepReport) -> str:
    digits = len(str(report.total_steps))
    left = round((report.total_steps - report.step) * report.seconds)
    eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    return (
        f"step {report.step:0{digits}}/{report.total_steps} | loss {report.loss:.4f}"
        f" | {report.seconds:.1f} s/it | eta {eta}"
    )


def _output_dir() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


def _registered(name: str) -> list[Path]:
    """Folders that ComfyUI, or extra_model_paths.yaml, knows under `name`; none if it does not know it."""
    import folder_paths

    folders, _ = folder_paths.folder_names_and_paths.get(name, ((), ()))
    return [Path(folder) for folder in folders]


def _owner_roots() -> list[Path]:
    """Folders that the server's owner adds, by environment variable and by file."""
    import folder_paths

    lines = os.environ.get(DATA_ROOTS_VARIABLE, "").split(os.pathsep)
    file = Path(folder_paths.get_system_user_directory("longcat")) / DATA_ROOTS_FILE
    if file.is_file():
        lines += file.read_text(encoding="utf-8-sig").splitlines()
    return [Path(line.strip()) for line in lines if line.strip()]
