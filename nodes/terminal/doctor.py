"""What `longcat doctor` says: is everything there that a run needs, and which precisions work?"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

from ...training.errors import ConfigError
from ...training.settings.model import BASE_PRECISIONS
from ...training.weights.devices import choose_dtype
from ...training.weights.precisions import ensure_available
from .host import TerminalHost

REQUIRED = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "optimum-quanto",
    "torchao",
    "safetensors",
    "huggingface_hub",
    "ftfy",
    "numpy",
    "pillow",
    "aiohttp",
    "av",
    "filelock",
)
"""As in pyproject.toml; a test compares them."""

GIB = 2**30


def report(host: TerminalHost) -> tuple[list[str], bool]:
    """The lines to show, and whether a run can start."""
    missing = [name for name in REQUIRED if _version(name) is None]
    lines = [
        f"python          {platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    ]
    lines += [f"{name:<15} {_version(name) or 'MISSING (pip install ' + name + ')'}" for name in REQUIRED]
    if "torch" not in missing:
        lines += _device_lines(host)
        lines += [f"{precision:<15} {_answer(precision, host)}" for precision in BASE_PRECISIONS]
    folders = {
        "home": host.home,
        "input": host.input_dir(),
        "models": host.models_dirs()[0],
        "loras": host.lora_dirs()[0],
        "runs": host.runs_dir(),
        "caches": host.cache_dir(),
    }
    lines += [f"{name:<15} {path}{'' if path.is_dir() else ' (made when needed)'}" for name, path in folders.items()]
    lines.append(f"free disk       {shutil.disk_usage(_existing(host.home)).free / GIB:.0f} GiB")
    lines.append("ready" if not missing else f"not ready: {', '.join(missing)} missing")
    return lines, not missing


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_lines(host: TerminalHost) -> list[str]:
    import torch

    device = host.device()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        return [f"device          {torch.cuda.get_device_name(device)}, {memory}"]
    note = (
        "" if device.type == "mps" else f", {torch.get_num_threads()} threads: enough for --tiny, not for real weights"
    )
    return [f"device          {device.type}{note}"]


def _answer(precision: str, host: TerminalHost) -> str:
    try:
        ensure_available(precision)
        return f"works: {choose_dtype(host.device(), precision)[1]}"
    except ConfigError as error:
        return f"will not work: {error}"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
