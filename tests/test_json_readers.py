"""Whatever is wrong with a JSON file that comes from outside: our error, which names the file and says what to do."""

import contextlib
import json
import os
import struct
import threading
from pathlib import Path

import pytest
import torch
from comfyui_longcat.nodes.graph.runner import read_graph
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.nodes.terminal.rehearse import rehearsals
from comfyui_longcat.nodes.terminal.train import export_config
from comfyui_longcat.nodes.terminal.validate import newest_lora
from comfyui_longcat.training.caches.store import INDEX_NAME, Item, fill
from comfyui_longcat.training.data.caption_files import read_json_caption, read_json_table
from comfyui_longcat.training.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LoraFileError,
    ModelError,
)
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.files import DEEPEST_JSON, LARGEST_JSON, parse_json, write_json
from comfyui_longcat.training.loop.checkpoint import restore_newest
from comfyui_longcat.training.loop.record import read_losses
from comfyui_longcat.training.loop.run_folder import Manifest, RunFolder
from comfyui_longcat.training.lora.file import read_lora, read_metadata
from comfyui_longcat.training.simpletuner.read import read_files
from comfyui_longcat.training.weights.checkpoint_files import read_config, read_header, weight_files
from safetensors.torch import save_file

BROKEN = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b"[" * 5_000 + b"]" * 5_000,
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a key twice": b'{"a": 1, "a": 2}',
    "not finite": b'{"a": NaN}',
    "too large a number": b'{"a": 1e999}',
    "too long a number": b'{"a": ' + b"9" * 5_000 + b"}",
    "half a character": b'{"a": "\\ud800"}',
    "a number": b"7",
    "null": b"null",
    "empty": b"",
    "blank": b" \n",
    "torn": b'{"a": ',
    "something behind": b"{} {}",
    "a control character": b'{"a": "\x01"}',
}

NO_TEXT = ("not UTF-8", "UTF-16", "empty")
"""What metadata inside a file cannot be: they are UTF-8 there, and an empty one is none."""


def config(folder, content):
    path = folder / "config.json"
    path.write_bytes(content)
    return path, lambda: read_files(path, {}, needs_data=False)


def data_file(folder, content):
    write_json(folder / "config.json", {})
    path = folder / "multidatabackend.json"
    path.write_bytes(content)
    return path, lambda: read_files(folder / "config.json", {})


def workflow(folder, content):
    path = folder / "workflow.json"
    path.write_bytes(content)
    return path, lambda: read_graph(path)


def rehearsed(folder, content):
    path = folder / "workflow.json"
    path.write_bytes(content)
    return path, lambda: rehearsals(path, [], folder, threading.Event(), lambda event: None)


def exported(folder, content):
    path = folder / "workflow.json"
    path.write_bytes(content)
    return path, lambda: export_config(path, folder / "made", folder)


def own_caption(folder, content):
    path = folder / "a.json"
    path.write_bytes(content)
    return path, lambda: read_json_caption(path)


def caption_table(folder, content):
    path = folder / "captions.json"
    path.write_bytes(content)
    return path, lambda: read_json_table(path)


def model_config(folder, content):
    path = folder / "config.json"
    path.write_bytes(content)
    return path, lambda: read_config(path)


def shard_index(folder, content):
    path = folder / "model.safetensors.index.json"
    path.write_bytes(content)
    return path, lambda: weight_files(folder)


def weight_header(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    return path, lambda: read_header(path)


def own_metadata(folder, content):
    path = folder / "lora.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"longcat": content.decode()})
    return path, lambda: read_metadata(path)


def foreign_metadata(folder, content):
    path = folder / "lora.safetensors"
    save_file(_lora("transformer."), path, metadata={"lora_adapter_metadata": content.decode()})
    return path, lambda: read_lora(path)


def peft_config(folder, content):
    save_file(_lora("base_model.model."), folder / "adapter_model.safetensors")
    path = folder / "adapter_config.json"
    path.write_bytes(content)
    return path, lambda: read_lora(folder)


def checkpoint(folder, content):
    path = folder / "step-000001" / "state.json"
    path.parent.mkdir()
    path.write_bytes(content)
    # The state is not looked at before its file has been read.
    return path, lambda: restore_newest(None, folder, NoCallbacks())


READERS = {
    config: ConfigError,
    data_file: ConfigError,
    workflow: ConfigError,
    rehearsed: ConfigError,
    exported: ConfigError,
    own_caption: DataError,
    caption_table: DataError,
    model_config: ModelError,
    shard_index: ModelError,
    weight_header: ModelError,
    own_metadata: LoraFileError,
    foreign_metadata: LoraFileError,
    peft_config: LoraFileError,
    checkpoint: CheckpointError,
}

IN_FILES = [reader for reader in READERS if reader not in (weight_header, own_metadata, foreign_metadata)]


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("reader", READERS)
def test_broken_json_is_our_error_and_names_the_file(reader, fault, tmp_path):
    if reader in (own_metadata, foreign_metadata) and fault in NO_TEXT:
        pytest.skip("no such metadata")
    path, read = reader(tmp_path, BROKEN[fault])
    _refused(read, READERS[reader], path)


@pytest.mark.parametrize("reader", IN_FILES)
def test_a_huge_file_is_refused_unread(reader, tmp_path):
    path, read = reader(tmp_path, b"{}")
    os.truncate(path, LARGEST_JSON + 1)
    _refused(read, READERS[reader], path, "too large")


@pytest.mark.parametrize("reader", [each for each in IN_FILES if each not in (data_file, shard_index, peft_config)])
def test_a_missing_file_is_named(reader, tmp_path):
    path, read = reader(tmp_path, b"{}")
    path.unlink()
    _refused(read, READERS[reader], path, "cannot be read")


def test_a_byte_order_mark_and_the_deepest_level_are_read(tmp_path):
    path, read = model_config(tmp_path, b"\xef\xbb\xbf" + b'{"a": "\xc3\xa4 \\ud83d\\ude00"}')
    assert read() == {"a": "ä \N{GRINNING FACE}"}
    text = "[" * DEEPEST_JSON + '"[[[[\\"[["' + "]" * DEEPEST_JSON
    assert parse_json(text, "x", ConfigError, "", kind=list) == json.loads(text)
    with pytest.raises(ConfigError, match=rf"^x .* {DEEPEST_JSON} objects .*line 2.* Fix it\.$"):
        parse_json(f"[\n{text}]", "x", ConfigError, "Fix it.", kind=list)


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_only_help_is_passed_over(fault, tmp_path):
    """Index of a cache, manifest and events of a run: everything goes on without them."""
    run, cache = tmp_path / "output" / "longcat" / "run", tmp_path / "cache"
    for path in (run / "manifest.json", cache / "index.json", cache / INDEX_NAME):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BROKEN[fault])
    events = b'{"event": "StepReport", "step": 1, "loss": 0.5}\n' + BROKEN[fault].replace(b"\n", b"") + b"\n[1]\n"
    (run / "events.jsonl").write_bytes(events + b'{"event": "StepReport"}\n')
    assert newest_lora(TerminalHost(tmp_path), "run") == "none"
    manifest = Manifest(fingerprint="f", state="running", step=0, total_steps=1, pid=1, updated=0)
    assert read_losses(RunFolder(folder=run, manifest=manifest)) == (0.5,)
    item = Item(
        label="a", source="a", folder=cache, tensor="prompt_embeds", parts={}, encode=lambda _: torch.zeros(1, 2, 3)
    )
    report = fill("texts", [item], contextlib.nullcontext, NoCallbacks())
    assert report.encoded == (("a", "not in the cache"),)
    assert json.loads((cache / INDEX_NAME).read_text())["sources"] == {"a": item.path.stem}
    assert (cache / "index.json").read_bytes() == BROKEN[fault]


def _refused(read, error_class, path: Path, words=""):
    with pytest.raises(error_class) as raised:
        read()
    message = str(raised.value)
    assert str(path) in message and words in message
    assert message.rstrip().endswith(".") and len(message) < 1_000


def _lora(prefix):
    name = f"{prefix}transformer_blocks.0.attn.to_q"
    return {f"{name}.lora_A.weight": torch.zeros(2, 4), f"{name}.lora_B.weight": torch.zeros(4, 2)}
