"""Which precisions can be had on this machine; loads no library."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from ..errors import ConfigError
from ..settings.model import QUANTISED_PRECISIONS

INT4 = "int4-quanto"

COMPILERS = ("c++", "g++", "clang++", "cl")


def ensure_available(precision: str) -> None:
    """Refuses a precision whose package, or whose compiler, is missing; imports nothing heavy.

    Raises:
        ConfigError: naming what is missing and how to get it.
    """
    if precision not in QUANTISED_PRECISIONS:
        return
    package = "optimum-quanto" if precision.endswith("quanto") else "torchao"
    if not _is_installed("optimum.quanto" if package == "optimum-quanto" else package):
        raise ConfigError(
            f"precision {precision} needs the package {package}, which is not installed although requirements.txt has"
            f" it. Install it into the Python that runs this (pip install {package}), or choose bf16."
        )
    if precision == INT4:
        _ensure_compilable()


def must_compile(precision: str, device_type: str) -> bool:
    """Whether `precision` compiles an extension at its next use on such a device: half a minute, on CUDA longer.

    Raises:
        ConfigError: as `ensure_available`.
    """
    ensure_available(precision)
    if precision != INT4:
        return False
    import torch

    # optimum-quanto compiles again for another torch.
    compiled_for = _build_folder("cuda" if device_type == "cuda" else "cpp") / "pytorch_version.txt"
    return not compiled_for.is_file() or compiled_for.read_text(encoding="utf-8").strip() != torch.__version__


def _ensure_compilable() -> None:
    missing = [] if shutil.which("ninja", path=search_path()) else ["ninja (pip install ninja)"]
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name):
        missing.append("a C++ compiler (g++, clang, or Visual Studio's cl)")
    if missing:
        raise ConfigError(
            f"precision {INT4} compiles an extension at its first use, but {' and '.join(missing)} cannot be found on"
            " the PATH. Install what is missing, or choose int8-quanto, which compiles nothing."
        )
    folder = _build_folder("cpp")
    place = folder if folder.is_dir() else folder.parent
    if not os.access(place, os.W_OK):
        raise ConfigError(
            f"precision {INT4} compiles an extension into the installed package, but {place} cannot be written."
            " Install optimum-quanto where you may write, or choose int8-quanto, which compiles nothing."
        )


def search_path() -> str:
    """The PATH with the scripts of this Python, which is not on it when Python is started by its full path."""
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), sysconfig.get_path("scripts"))))


def _build_folder(kind: str) -> Path:
    """Where optimum-quanto 0.2.7 puts the extension that unpacks 4-bit weights; `kind` is cpp or cuda."""
    package = importlib.util.find_spec("optimum.quanto")
    return Path(package.origin).parent / "library" / "extensions" / kind / "build"


def _is_installed(module: str) -> bool:
    package = module.partition(".")[0]
    # Asking for the module alone would raise where the package is missing.
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None
