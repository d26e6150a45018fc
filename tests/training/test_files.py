"""Atomic writing: under errors and a full disk the old file stays and nothing half-written remains."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from comfyui_longcat.training.files import (
    replacing,
    replacing_folder,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_safetensors,
)
from safetensors import safe_open
from safetensors.torch import load_file


def test_replacing_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")
def test_files_have_the_usual_mode(tmp_path):
    (tmp_path / "plain").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    write_json(tmp_path / "ours", {})
    with replacing_folder(tmp_path / "our-folder"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "our-folder").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "checkpoints" / "step-000100"
    with pytest.raises(RuntimeError), replacing_folder(path) as folder:
        (folder / "adapter").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert os.listdir(path.parent) == []
    with replacing_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "adapter").write_text("whole", encoding="utf-8")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing_folder(path) as folder:
        raise RuntimeError
    assert (path / "deep" / "adapter").read_text(encoding="utf-8") == "whole"
    with replacing_folder(path) as folder:
        (folder / "other").write_text("", encoding="utf-8")
    assert os.listdir(path) == ["other"] and os.listdir(path.parent) == ["step-000100"]


def test_safetensors_with_metadata(tmp_path):
    path = tmp_path / "cache.safetensors"
    grid = torch.arange(6.0).reshape(2, 3)
    write_safetensors(path, {"turned": grid.T, "shared": grid[0]}, {"family": "longcat_image"})
    loaded = load_file(path)
    assert torch.equal(loaded["turned"], grid.T) and torch.equal(loaded["shared"], grid[0])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"family": "longcat_image"}


def test_json_round_trip_and_hashes(tmp_path):
    value = {"b": [1, 2.5, None], "a": "\u84dd\u8272"}
    write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value
    assert sha256_of_json(value) == sha256_of_json(dict(reversed(value.items())))
    assert sha256_of_json(value) != sha256_of_json({**value, "a": "blue"})
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


FULL_DISK = textwrap.dedent(
    """
    import resource, signal, sys
    from pathlib import Path
    import torch
    from comfyui_longcat.training.files import replacing_folder, write_json, write_safetensors

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    large = torch.arange(100_000, dtype=torch.float32)

    def checkpoint():
        with replacing_folder(folder / "step-000100") as temporary:
            write_json(temporary / "state.json", {"step": 2})
            write_safetensors(temporary / "adapter.safetensors", {"weight": large}, {})

    for write in (
        lambda: write_safetensors(folder / "cache.safetensors", {"latents": large}, {}),
        lambda: write_json(folder / "manifest.json", ["x" * 100_000]),
        checkpoint,
    ):
        try:
            write()
        except OSError:
            continue
        sys.exit("a write beyond the limit raised nothing")
    """
)


@pytest.mark.skipif(os.name == "nt", reason="file size limits are a POSIX feature")
def test_a_full_disk_leaves_the_old_files_and_nothing_half_written(tmp_path):
    old = torch.arange(4.0)
    write_safetensors(tmp_path / "cache.safetensors", {"latents": old}, {})
    write_json(tmp_path / "manifest.json", {"step": 1})
    with replacing_folder(tmp_path / "step-000100") as folder:
        write_json(folder / "state.json", {"step": 1})
    run = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert sorted(os.listdir(tmp_path)) == ["cache.safetensors", "manifest.json", "step-000100"]
    assert torch.equal(load_file(tmp_path / "cache.safetensors")["latents"], old)
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8")) == {"step": 1}
    assert os.listdir(tmp_path / "step-000100") == ["state.json"]
    assert json.loads((tmp_path / "step-000100" / "state.json").read_text(encoding="utf-8")) == {"step": 1}
