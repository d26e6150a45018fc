"""Makes the unfinished runs of this folder again, with whatever code is installed: see README.md before you do.

OMP_NUM_THREADS=1 python tests/assets/version_before/make.py
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

COMMANDS = {"edit": ("run", "graph.json"), "video": ("train", "--config", "config.json")}
"""Folder of a run, which is also its home -> the words after `longcat`."""

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **{"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"},
}
"""On the CPU, with one order of summing: one thread, and kernels that do not depend on the processor's make."""

HOME = "/home-of-the-run"
"""Stands for the absolute path of the home in the files that a run writes."""

STOP_AFTER = "samples at step 2:"
"""The line on which the unfinished runs are stopped."""


def start(home: Path, name: str) -> subprocess.Popen:
    """The run `name` on the CPU, in `home`; its lines come on stderr."""
    command = [sys.executable, "-m", "comfyui_longcat", *COMMANDS[name], "--base-directory", "."]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=home, env=os.environ | ENVIRONMENT, **pipes)


def finish(home: Path, name: str) -> str:
    """Runs to the end; returns the lines."""
    process = start(home, name)
    lines = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(lines)
    return lines


def run_of(home: Path) -> Path:
    """The only run in `home`."""
    (folder,) = (path for path in (home / "output" / "longcat").iterdir() if path.is_dir())
    return folder


def lora_of(home: Path) -> Path:
    (path,) = (home / "models" / "loras").glob("*.safetensors")
    return path


def caches_of(home: Path) -> dict[str, Path]:
    """Every cache file, by its place, e.g. text/<key>.safetensors."""
    folder = home / "output" / "longcat-cache"
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.safetensors"))}


def results_of(home: Path) -> dict[str, Any]:
    """What a run leaves that must stay as it is."""
    run = run_of(home)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "StepReport"}
    return {
        "run": run.name,
        "fingerprint": json.loads((run / "manifest.json").read_text(encoding="utf-8"))["fingerprint"],
        "losses": [losses[step] for step in sorted(losses)],
        "samples": sorted(path.name for path in (run / "samples").iterdir()),
        "caches": {place: digest_of(path) for place, path in caches_of(home).items()},
    }


def digest_of(path: Path) -> str:
    """sha256 over the tensors of a safetensors file: names, dtypes, shapes and bytes, without its metadata."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, "np") as file:
        for name in sorted(file.keys()):
            array = file.get_tensor(name)
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """What decides the bits of a result on the CPU."""
    import torch

    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def replace_in_texts(folder: Path, old: str, new: str) -> None:
    """In the JSON files that runs and caches write; tensors hold no paths."""
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]), encoding="utf-8", newline="\n")


def copy_start(name: str, home: Path) -> None:
    """The run's data and settings, without what it wrote."""
    shutil.copytree(HERE / name, home, ignore=shutil.ignore_patterns("output", "expected*"))


def stop_after_two_steps(name: str, home: Path) -> None:
    copy_start(name, home)
    process = start(home, name)
    for line in process.stderr:
        if line.startswith(STOP_AFTER):
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate()[1]
    steps = [path.name for path in (run_of(home) / "checkpoints").iterdir()]
    if process.returncode != 130 or steps != ["step-000002"]:
        raise RuntimeError(f"{name} was to stop at step 2, and has {steps}; try again.\n{rest}")


def make(name: str, folder: Path) -> dict[str, Any]:
    whole, part = folder / "whole", folder / "part"
    copy_start(name, whole)
    finish(whole, name)
    stop_after_two_steps(name, part)
    expected = results_of(whole)
    so_far = results_of(part)
    if so_far["losses"] != expected["losses"][:2] or so_far["caches"] != expected["caches"]:
        raise RuntimeError(f"{name}: two runs of this machine differ.")
    shutil.copyfile(lora_of(whole), HERE / name / "expected.safetensors")
    shutil.rmtree(HERE / name / "output", ignore_errors=True)
    for place in ("longcat", "longcat-cache"):
        shutil.copytree(part / "output" / place, HERE / name / "output" / place)
    replace_in_texts(HERE / name / "output", str(part.resolve()), HOME)
    return expected


def main() -> None:
    made_with = machine() | {"transformers": metadata.version("transformers")}
    for name in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            expected = {"made_with": made_with, **make(name, Path(folder))}
        (HERE / name / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
