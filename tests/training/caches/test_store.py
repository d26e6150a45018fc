"""The content-addressed folder: real files, tensors made on the spot instead of by a model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches import store
from comfyui_longcat.training.caches.store import (
    INDEX_NAME,
    Item,
    check_folders,
    fill,
    load_tensor,
    refused_reads,
    tracked,
)
from comfyui_longcat.training.data.records import Record, Source, TrainingSet
from comfyui_longcat.training.errors import CacheError, ConfigError, StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.files import write_safetensors
from comfyui_longcat.training.settings.dataset import DatasetConfig


class Recorder:
    """Keeps events; stops after `stop_after` of them."""

    def __init__(self, stop_after=None):
        self.events = []
        self.stop_after = stop_after

    def on_event(self, event):
        self.events.append(event)

    def should_stop(self):
        return self.stop_after is not None and len(self.events) >= self.stop_after


class Encoder:
    """Opens like a model and counts it."""

    def __init__(self):
        self.opened = 0

    @contextlib.contextmanager
    def open(self):
        self.opened += 1
        yield 2.0


@pytest.fixture
def encoder():
    return Encoder()


def item(folder, name, picture="p", bucket="64x64", value=1.0):
    return Item(
        label=f"{name} target",
        source=f"/pictures/{name}.png",
        folder=folder,
        tensor="latents",
        parts={"picture": picture, "bucket": bucket},
        encode=lambda factor: torch.full((1, 16, 8, 8), value * factor),
    )


def load(path):
    return load_tensor(path, "latents", "Cache VAE Latents")


def test_a_second_run_reuses_everything_and_opens_no_encoder(tmp_path, encoder):
    items = [item(tmp_path, "a", "1", value=1.0), item(tmp_path, "b", "2", value=2.0)]
    report = fill("latents", items, encoder.open, NoCallbacks())
    assert (report.reused, encoder.opened) == (0, 1)
    assert report.encoded == (("a target", "not in the cache"), ("b target", "not in the cache"))
    assert [load(each.path).unique().tolist() for each in items] == [[2.0], [4.0]]
    again = fill("latents", [item(tmp_path, "a", "1"), item(tmp_path, "b", "2")], encoder.open, NoCallbacks())
    assert (again.reused, again.encoded, encoder.opened) == (2, (), 1)
    assert again.text() == "latents: 2 reused, 0 encoded."


def test_items_of_equal_parts_share_a_file(tmp_path, encoder):
    items = [item(tmp_path, "a"), item(tmp_path, "b")]
    report = fill("latents", items, encoder.open, NoCallbacks())
    assert items[0].path == items[1].path
    assert (report.reused, report.encoded) == (1, (("a target", "not in the cache"),))


def test_the_report_says_what_changed(tmp_path, encoder):
    def reason(**parts):
        return fill("latents", [item(tmp_path, "a", **parts)], encoder.open, NoCallbacks()).encoded[0][1]

    assert reason(picture="1") == "not in the cache"
    assert reason(picture="2") == "picture changed"
    assert reason(picture="3", bucket="128x64") == "picture, bucket changed"


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe", b'{"/pictures/a.png": 7}', b'{"/pictures/a.png": "../x"}']
)
def test_a_damaged_index_costs_reasons_only(tmp_path, encoder, content):
    fill("latents", [item(tmp_path, "a", "1")], encoder.open, NoCallbacks())
    (tmp_path / INDEX_NAME).write_bytes(content)
    report = fill("latents", [item(tmp_path, "a", "1"), item(tmp_path, "a", "2")], encoder.open, NoCallbacks())
    assert (report.reused, report.encoded) == (1, (("a target", "not in the cache"),))
    assert set(json.loads((tmp_path / INDEX_NAME).read_text())["sources"]) == {"/pictures/a.png"}


def test_the_index_of_earlier_versions_is_read_and_never_written(tmp_path, encoder):
    before = tmp_path / "index.json"
    first = item(tmp_path, "a", "1")
    fill("latents", [first], encoder.open, NoCallbacks())
    (tmp_path / INDEX_NAME).unlink()
    before.write_text(json.dumps({first.source: first.path.stem}))
    again = fill("latents", [item(tmp_path, "a", "2")], encoder.open, NoCallbacks())
    assert again.encoded == (("a target", "picture changed"),)
    assert json.loads(before.read_text()) == {first.source: first.path.stem}
    changed = item(tmp_path, "a", "2")
    assert json.loads((tmp_path / INDEX_NAME).read_text()) == {
        "format": "longcat cache index 1",
        "sources": {first.source: changed.path.stem},
    }


@pytest.mark.parametrize("content", [b'["mine", 1]', b'{"/pictures/a.png": "mine", "other": [1]}', b"\xff\x00"])
def test_another_program_s_index_stays_as_it_is(tmp_path, encoder, dataset, content):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "index.json").write_bytes(content)
    check_folders(dataset, {"cache_dir_vae": cache})
    assert fill("latents", [item(cache, "a", "1")], encoder.open, NoCallbacks()).encoded == (
        ("a target", "not in the cache"),
    )
    assert (cache / "index.json").read_bytes() == content
    assert set(json.loads((cache / INDEX_NAME).read_text())["sources"]) == {"/pictures/a.png"}


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def garbled(path):
    path.write_bytes(b"this is no safetensors file, and never was" * 20)


def of_another_item(path):
    write_safetensors(path, {"latents": torch.zeros(1, 16, 8, 8)}, {"picture": "other"})


def of_another_kind(path):
    write_safetensors(path, {"prompt_embeds": torch.zeros(1, 5, 8)}, {})


def with_a_flipped_bit(path):
    """In the tensor's numbers; size and modification time stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def of_another_shape(path):
    content = path.read_bytes()
    assert b"[1,16,8,8]" in content
    path.write_bytes(content.replace(b"[1,16,8,8]", b"[1,8,16,8]"))


def flat(path):
    write_safetensors(path, {"latents": torch.zeros(16, 8, 8)}, {})


DAMAGES = (truncated, emptied, garbled, of_another_kind, flat, with_a_flipped_bit, of_another_shape)


@pytest.mark.parametrize("damage", [*DAMAGES, of_another_item])
def test_a_damaged_file_is_replaced_and_the_report_says_so(tmp_path, encoder, damage):
    wanted = item(tmp_path, "a", value=3.0)
    fill("latents", [wanted], encoder.open, NoCallbacks())
    damage(wanted.path)
    report = fill("latents", [item(tmp_path, "a", value=3.0)], encoder.open, NoCallbacks())
    assert report.encoded[0][1].startswith("damaged file replaced (")
    assert load(wanted.path).unique().tolist() == [6.0]
    assert fill("latents", [item(tmp_path, "a")], encoder.open, NoCallbacks()).reused == 1


@pytest.mark.parametrize("damage", [*DAMAGES, os.unlink])
def test_loading_a_damaged_file_names_it_and_the_node_to_run(tmp_path, encoder, damage):
    wanted = item(tmp_path, "a")
    fill("latents", [wanted], encoder.open, NoCallbacks())
    load(wanted.path)
    damage(wanted.path)
    refused = refused_reads()
    for _ in range(2):
        with pytest.raises(CacheError, match="Run Cache VAE Latents again") as caught:
            load(wanted.path)
        assert str(wanted.path) in str(caught.value)
    assert refused_reads() == refused + 2


def test_a_file_is_read_whole_once_and_again_when_it_was_touched(tmp_path, encoder, monkeypatch):
    wanted, counted = item(tmp_path, "a"), []
    fill("latents", [wanted], encoder.open, NoCallbacks())
    digest_of = store._digest_of
    monkeypatch.setattr(store, "_digest_of", lambda tensor: counted.append(1) or digest_of(tensor))
    for _ in range(3):
        load(wanted.path)
    fill("latents", [item(tmp_path, "a")], encoder.open, NoCallbacks())
    assert len(counted) == 1
    wanted.path.write_bytes(wanted.path.read_bytes())
    load(wanted.path)
    assert len(counted) == 2


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path, encoder):
    old, young, foreign = (tmp_path / name for name in (".a.0123.tmp", ".b.0123.tmp", "mine.tmp"))
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    a_day_ago = time.time() - 25 * 3600
    for path in (old, foreign):
        os.utime(path, (a_day_ago, a_day_ago))
    fill("latents", [item(tmp_path, "a")], encoder.open, NoCallbacks())
    assert [path.exists() for path in (old, young, foreign)] == [False, True, True]


def test_a_file_of_an_earlier_version_has_no_digest_and_is_good(tmp_path, encoder):
    old = item(tmp_path, "a")
    write_safetensors(old.path, {"latents": torch.ones(1, 16, 8, 8)}, {**old.identity, "source": old.label})
    recorder = Recorder()
    assert fill("latents", [old], encoder.open, recorder).reused == 1
    assert [(event.stage, event.done, event.total) for event in recorder.events] == [("checking cached latents", 1, 1)]
    assert load(old.path).unique().tolist() == [1.0]


def test_the_file_says_what_it_is(tmp_path, encoder):
    from safetensors import safe_open

    wanted = item(tmp_path, "a\udcff\u4e2d")
    fill("latents", [wanted], encoder.open, NoCallbacks())
    with safe_open(wanted.path, framework="pt") as file:
        metadata = file.metadata()
        assert re.fullmatch("[0-9a-f]{64}", metadata.pop("digest"))
        assert metadata == {
            "format": "1",
            "tensor": "latents",
            "picture": "p",
            "bucket": "64x64",
            "source": "a\\udcff\u4e2d target",
        }
    assert fill("latents", [item(tmp_path, "a\udcff\u4e2d")], encoder.open, NoCallbacks()).reused == 1


def test_numbers_that_are_not_finite_are_never_written(tmp_path, encoder):
    with pytest.raises(CacheError, match="a target.*not finite"):
        fill("latents", [item(tmp_path, "a", value=float("nan"))], encoder.open, NoCallbacks())
    assert list(tmp_path.iterdir()) == []


def test_stopping_keeps_what_is_finished(tmp_path, encoder):
    items = [item(tmp_path, name, name) for name in "abc"]
    recorder = Recorder(stop_after=2)
    with pytest.raises(StoppedByUserError, match="2 of 3 done"):
        fill("latents", items, encoder.open, recorder)
    assert [(e.stage, e.done, e.total) for e in recorder.events] == [
        ("caching latents", 1, 3),
        ("caching latents", 2, 3),
    ]
    assert [name for name, _ in fill("latents", items, encoder.open, NoCallbacks()).encoded] == ["c target"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, encoder):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="cannot be written.*choose another folder") as caught:
        fill("latents", [item(tmp_path / "file" / "cache", "a")], encoder.open, NoCallbacks())
    assert str(tmp_path / "file" / "cache") in str(caught.value)


FULL_DISK = """
import resource, sys
from pathlib import Path
import test_store as here

resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    here.fill("latents", here.small_and_large(Path(sys.argv[1])), here.Encoder().open, here.NoCallbacks())
except here.CacheError as error:
    sys.stdout.write(str(error))
"""


def small_and_large(folder):
    """Two items of 4 kB and, between them, one of 8 kB."""
    large = replace(item(folder, "large", "l"), encode=lambda factor: torch.full((1, 16, 8, 16), factor))
    return [item(folder, "first", "f"), large, item(folder, "last", "z")]


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX limit of file sizes stands in for the full disk")
def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, encoder):
    folder = tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", FULL_DISK, str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert str(folder) in ended.stdout and "cannot be written" in ended.stdout
    assert "Free some space or choose another folder" in ended.stdout
    items = small_and_large(folder)
    assert list(folder.iterdir()) == [items[0].path]
    assert load(items[0].path).shape == (1, 16, 8, 8)
    report = fill("latents", items, encoder.open, NoCallbacks())
    assert [name for name, _ in report.encoded] == ["large target", "last target"]
    assert load(items[1].path).shape == (1, 16, 8, 16)


def test_tracked_passes_errors_of_callbacks_on(tmp_path):
    class Failing(NoCallbacks):
        def on_event(self, event):
            raise RuntimeError("the outside is gone")

    with pytest.raises(RuntimeError, match="the outside is gone"):
        list(tracked([1, 2], "hashing", Failing()))


@pytest.fixture
def dataset(tmp_path):
    """Targets in one folder, the reference in another, named in one of the two ways each."""
    for name in ("targets", "references"):
        (tmp_path / "data" / name).mkdir(parents=True)
    record = Record(
        name="a",
        target=tmp_path / "data" / "targets" / "a.png",
        references=(tmp_path / "data" / "references" / "a.png",),
        caption="",
        bucket=(64, 64),
    )
    return TrainingSet(
        sources=(
            Source(
                targets=DatasetConfig(instance_data_dir=str(tmp_path / "data" / "targets")),
                references=DatasetConfig(dataset_type="conditioning"),
            ),
        ),
        records=(record,),
    )


def test_folders_apart_and_outside_the_data_are_accepted(tmp_path, dataset):
    check_folders(dataset, {"one": tmp_path / "cache" / "one", "two": tmp_path / "cache"})


@pytest.mark.parametrize("other", ["cache", "cache/", "cache/sub/..", "./cache", "link"])
def test_the_same_folder_under_any_name_is_refused(tmp_path, dataset, other):
    (tmp_path / "cache" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    folders = {"cache_dir_vae": tmp_path / "cache", "reference_cache_dir_vae": tmp_path / other}
    with pytest.raises(ConfigError, match="cache_dir_vae and reference_cache_dir_vae are the same folder"):
        check_folders(dataset, folders)


@pytest.mark.parametrize("inside", ["data/targets", "data/references/.cache", "link/cache"])
def test_a_folder_among_the_data_is_refused(tmp_path, dataset, inside):
    (tmp_path / "link").symlink_to(tmp_path / "data" / "targets")
    with pytest.raises(ConfigError, match="cache_dir_vae is .* lies in the data folder"):
        check_folders(dataset, {"cache_dir_vae": tmp_path / inside})
    assert not any((tmp_path / "data" / "references").iterdir())


def test_a_folder_with_other_files_is_refused_by_their_names(tmp_path, dataset, encoder):
    cache = tmp_path / "cache"
    fill("latents", [item(cache, "a")], encoder.open, NoCallbacks())
    for harmless in (".DS_Store", "Thumbs.db", ".0123.tmp", "index.json"):
        (cache / harmless).write_text("")
    (cache / "sub").mkdir()
    check_folders(dataset, {"cache_dir_vae": cache})
    for foreign in ("notes.txt", "model.safetensors", "a.pt", "z.bin"):
        (cache / foreign).write_text("")
    words = r"cache_dir_vae is .*not of this cache: a.pt, model.safetensors, notes.txt and 1 more\. Choose an empty"
    with pytest.raises(ConfigError, match=words):
        check_folders(dataset, {"cache_dir_vae": cache})


def test_a_file_is_no_cache_folder(tmp_path, dataset):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_folders(dataset, {"cache_dir_vae": tmp_path / "file"})
