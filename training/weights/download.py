"""Fetching a released model's folder from the hub: with progress, stoppable, and continued the next time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from threading import Event
from typing import Any

from ..errors import ModelError, StoppedByUserError
from ..events import Callbacks, StageProgress

FILES = [
    "model_index.json",
    "scheduler/*.json",
    *(
        f"{component}/*.{suffix}"
        for component in ("transformer", "dit", "vae", "text_encoder")
        for suffix in ("json", "safetensors")
    ),
    *(
        f"{component}/*.{suffix}"
        for component in ("tokenizer", "text_processor")
        for suffix in ("json", "txt", "model")
    ),
]
"""What this pack reads: weights as safetensors only."""

POLL_SECONDS = 0.5

STOP_SECONDS = 10
"""How long a stopped download may take to let go of its files; after that its thread ends on its own."""


def download(repo_id: str, folder: Path, callbacks: Callbacks) -> None:
    """Downloads the files of `repo_id` that a run needs into `folder`; finished ones that lie there are kept.

    Raises:
        ModelError: the hub or the repository cannot be reached, or the disk is full.
        StoppedByUserError: `callbacks.should_stop()` said so.
    """
    stopped = Event()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="longcat-download")
    stage = f"downloading {repo_id}"
    jobs: list[Future] = []

    def follow(function: Callable[..., Any], *arguments: Any, total: int) -> Any:
        jobs.append(executor.submit(function, *arguments))
        while not jobs[-1].done():
            # Reported from here, not from the hub's threads: hosts tie progress to the thread that runs the node.
            callbacks.on_event(StageProgress(stage=stage, done=min(_bytes_in(folder), total), total=total))
            if callbacks.should_stop():
                raise StoppedByUserError(f"Stopped while {stage}; the next run continues the download.")
            wait_for(jobs, timeout=POLL_SECONDS)
        error = jobs[-1].exception()
        if error is not None:
            raise ModelError(_failure(repo_id, folder, error)) from error
        return jobs[-1].result()

    try:
        revision, sizes = follow(_wanted, repo_id, total=0)
        total = sum(sizes.values())
        _check_space(folder, total)
        follow(_fetch, repo_id, revision, folder, stopped, total=total)
        callbacks.on_event(StageProgress(stage=stage, done=total, total=total))
    finally:
        stopped.set()
        wait_for(jobs, timeout=STOP_SECONDS)
        executor.shutdown(wait=False)
    _check_complete(repo_id, folder, sizes)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _wanted(repo_id: str) -> tuple[str, dict[str, int]]:
    """The newest revision and the size in bytes of each of its `FILES`."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    info = HfApi().model_info(repo_id, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return info.sha or "main", {name: sizes[name] for name in filter_repo_objects(sizes, allow_patterns=FILES)}


def _fetch(repo_id: str, revision: str, folder: Path, stopped: Event) -> None:
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    class StoppableBar(tqdm):
        """The hub's only hook inside a download; it draws nothing and ends the download when asked."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise StoppedByUserError(f"Stopped while downloading {repo_id}.")
            return super().update(n)

    snapshot_download(
        repo_id, revision=revision, local_dir=folder, allow_patterns=FILES, tqdm_class=StoppableBar, max_workers=4
    )


def _check_space(folder: Path, total: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = total - _bytes_in(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{folder} needs {needed / 1e9:.1f} GB more, but its disk has {free / 1e9:.1f} GB free. Make room, or put"
            " the model on another disk and give its folder as pretrained_model_name_or_path."
        )


def _check_complete(repo_id: str, folder: Path, sizes: dict[str, int]) -> None:
    wrong = [
        name for name, size in sizes.items() if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]
    if wrong or not sizes:
        names = ", ".join(wrong[:10]) or "all"
        raise ModelError(
            f"After downloading {repo_id}, files are missing or too short in {folder}: {names}. Run again."
        )


def _failure(repo_id: str, folder: Path, error: BaseException) -> str:
    return (
        f"{repo_id} could not be downloaded: {type(error).__name__}: {error}. Run again to continue the download, or"
        f" put the repository's files into {folder.with_suffix('')} by hand (its folders, and model_index.json where"
        " there is one), or give a folder that has them as pretrained_model_name_or_path."
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # Files are renamed when they are complete, also between listing and asking.
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
