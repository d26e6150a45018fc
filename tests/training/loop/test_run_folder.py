"""Which folder a run gets, who holds it, and what is written down in it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from comfyui_longcat.training.caches.cache import Cache, CachedRecord, CacheFolders
from comfyui_longcat.training.data.records import Record, Source, TrainingSet
from comfyui_longcat.training.errors import CheckpointError, ConfigError, StoppedByUserError
from comfyui_longcat.training.events import (
    CheckpointSaved,
    NoCallbacks,
    RunStarted,
    SamplesReady,
    StageProgress,
    StepReport,
    WarningRaised,
)
from comfyui_longcat.training.files import sha256_of_file
from comfyui_longcat.training.loop.record import read_losses, recording
from comfyui_longcat.training.loop.run_folder import (
    LONGEST_INSIDE,
    check_path_length,
    claim_run,
    publish_lora,
    run_fingerprint,
    settings_of,
)
from comfyui_longcat.training.loop.run_lock import exclusive
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.weights.spec import LoraUse, ModelSpec

CONFIG = TrainConfig(run_name="bird")


def make_cache(latents="aa"):
    record = Record(name="1", target=Path("1.png"), caption="c", bucket=(64, 64))
    return Cache(
        model_family="longcat_image",
        dataset=TrainingSet(sources=(Source(targets=DatasetConfig(instance_data_dir="/data")),), records=(record,)),
        folders=CacheFolders(targets=Path("t"), references=Path("r")),
        records=(CachedRecord(record=record, latents=Path(f"{latents}.safetensors")),),
    )


def make_spec(**settings):
    return ModelSpec(config=ModelConfig(model_flavour="tiny-edit", **settings), models_dirs=(Path("models"),))


def fingerprint(config=CONFIG, spec=None, cache=None, identity="weights"):
    return run_fingerprint(config, spec or make_spec(), cache or make_cache(), identity)


def claim(tmp_path, config=CONFIG, print_of_run="f"):
    return claim_run(config, print_of_run, tmp_path / "runs", tmp_path / "loras")


def step_report(step, loss=1.5):
    return StepReport(
        step=step, total_steps=9, loss=loss, grad_norm=1.0, learning_rate=0.1, seconds=0.1, bucket=(64, 64)
    )


@pytest.mark.parametrize(
    "other",
    [
        {"config": replace(CONFIG, learning_rate=1e-3)},
        {"config": replace(CONFIG, seed=1)},
        {"config": replace(CONFIG, options=TrainingOptions(use_ema=True))},
        {"config": replace(CONFIG, options=TrainingOptions(weight_decay=0.5))},
        {"spec": make_spec(base_model_precision="fp32")},
        {"cache": make_cache("bb")},
        {"identity": "other weights"},
    ],
)
def test_fingerprint_changes_with_what_decides_the_numbers(other):
    assert fingerprint(**other) != fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, run_name="other"),
        replace(CONFIG, restart=True),
        replace(CONFIG, validation=ValidationConfig()),
        replace(
            CONFIG,
            options=TrainingOptions(checkpoint_step_interval=7, checkpoints_total_limit=9, debug_images=True),
        ),
        replace(CONFIG, max_train_steps=7),
    ],
)
def test_fingerprint_stays_for_what_does_not(other):
    assert fingerprint(config=other) == fingerprint()


def test_fingerprint_holds_the_steps_where_the_learning_rate_depends_on_them():
    config = replace(CONFIG, options=TrainingOptions(lr_scheduler="cosine"))
    assert fingerprint(config=replace(config, max_train_steps=7)) != fingerprint(config=config)


def test_fingerprint_covers_the_bytes_of_other_loras(tmp_path):
    path = tmp_path / "a.safetensors"
    prints = set()
    for content, strength in ((b"1", 1.0), (b"2", 1.0), (b"2", 0.5)):
        path.write_bytes(content)
        prints.add(fingerprint(spec=make_spec().with_lora(LoraUse(path=path, strength=strength))))
    assert len(prints | {fingerprint()}) == 4


def test_new_run_then_the_same_again(tmp_path):
    with claim(tmp_path) as run:
        assert (run.name, run.notes, run.finished) == ("bird", (), False)
        run.note(replace(run.manifest, step=4))
    with claim(tmp_path) as run:
        assert (run.name, run.manifest.step) == ("bird", 4)


def test_other_settings_get_the_next_name_and_are_found_again(tmp_path):
    for print_of_run, name in (("f", "bird"), ("g", "bird-2"), ("h", "bird-3"), ("g", "bird-2"), ("f", "bird")):
        with claim(tmp_path, print_of_run=print_of_run) as run:
            assert run.name == name
            assert bool(run.notes) == (name != "bird")
            assert all(name in note for note in run.notes)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["bird", "bird-2", "bird-3"]


def test_restart_gets_a_new_folder_which_is_then_the_one_that_goes_on(tmp_path):
    with claim(tmp_path):
        pass
    with claim(tmp_path, replace(CONFIG, restart=True)) as run:
        assert run.name == "bird-2"
    with claim(tmp_path) as run:
        assert run.name == "bird-2"


def test_names_of_loras_and_of_strange_folders_are_not_taken(tmp_path):
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "bird.safetensors").write_bytes(b"someone's")
    (tmp_path / "runs" / "bird-2").mkdir(parents=True)
    (tmp_path / "runs" / "bird-2" / "manifest.json").write_text("{}")
    with claim(tmp_path) as run:
        assert run.name == "bird-3"
    assert (tmp_path / "runs" / "bird-2" / "manifest.json").read_text() == "{}"


@pytest.mark.slow
def test_a_run_held_by_another_process_is_refused(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from comfyui_longcat.training.settings.run import TrainConfig\n"
        "from comfyui_longcat.training.loop.run_folder import claim_run\n"
        f"root = Path({str(tmp_path)!r})\n"
        "with claim_run(TrainConfig(run_name='bird'), 'f', root / 'runs', root / 'loras') as run:\n"
        "    sys.stdout.write('held\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(CheckpointError, match=rf"being trained right now \(process {process.pid}, step 0\)"),
            claim(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    # Killed: whatever the manifest says, nobody holds the run now.
    assert json.loads((tmp_path / "runs" / "bird" / "manifest.json").read_text())["state"] == "running"
    with claim(tmp_path) as run:
        assert run.name == "bird"


def with_checkpoint(run, content=b"lora"):
    folder = run.checkpoints / "step-000009"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter.safetensors").write_bytes(content)
    digest = sha256_of_file(folder / "adapter.safetensors")
    (folder / "state.json").write_text(json.dumps({"sha256": {"adapter.safetensors": digest}, "fingerprint": "f"}))


def test_the_lora_is_copied_and_put_back_when_it_was_deleted(tmp_path):
    with claim(tmp_path) as run:
        with_checkpoint(run)
        path = publish_lora(run, tmp_path / "loras", NoCallbacks())
        assert path == tmp_path / "loras" / "bird.safetensors"
        assert path.read_bytes() == run.lora_copy.read_bytes() == b"lora"
        run.note(replace(run.manifest, state="finished", step=run.manifest.total_steps, lora=path.stem))
    for gone in ([path], [path, run.lora_copy]):
        for file in gone:
            file.unlink()
        with claim(tmp_path) as again:
            assert again.finished
            assert publish_lora(again, tmp_path / "loras", NoCallbacks()) == path
        assert path.read_bytes() == b"lora"


def test_a_finished_run_without_any_copy_of_its_lora_is_not_finished(tmp_path):
    with claim(tmp_path) as run:
        run.note(replace(run.manifest, state="finished", step=run.manifest.total_steps))
        assert not run.finished


def test_a_lora_of_another_origin_is_never_overwritten(tmp_path, listener):
    heard = listener()
    with claim(tmp_path) as run:
        with_checkpoint(run)
        (tmp_path / "loras").mkdir()
        (tmp_path / "loras" / "bird.safetensors").write_bytes(b"someone's")
        path = publish_lora(run, tmp_path / "loras", heard)
    assert path.name == "bird-2.safetensors"
    assert (tmp_path / "loras" / "bird.safetensors").read_bytes() == b"someone's"
    assert "bird.safetensors is another LoRA" in heard.of(WarningRaised)[0].message


def test_a_lora_folder_that_cannot_be_written_says_where_the_lora_is(tmp_path):
    (tmp_path / "loras").write_text("a file")
    with claim(tmp_path) as run:
        with_checkpoint(run)
        with pytest.raises(CheckpointError, match=r"could not be copied.*safe in .*step-000009"):
            publish_lora(run, tmp_path / "loras", NoCallbacks())


def lines(run):
    return [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]


def test_every_event_is_written_down_and_handed_on(tmp_path, listener):
    heard = listener()
    events = [
        RunStarted(run="bird", folder=tmp_path, first_step=1, total_steps=9, resumed=False),
        StageProgress(stage="loading", done=0, total=1),
        step_report(1),
        SamplesReady(step=1, images=(), paths=(tmp_path / "a.png",)),
        CheckpointSaved(step=1, folder=tmp_path),
        WarningRaised(message="\u4f60"),
    ]
    with claim(tmp_path) as run, recording(run, heard) as recorder:
        for event in events:
            recorder.on_event(event)
        assert heard.events == events
        written = lines(run)
    # Progress within a stage is of the moment, not of the run.
    assert [line["event"] for line in written] == [
        "RunStarted",
        "StepReport",
        "SamplesReady",
        "CheckpointSaved",
        "WarningRaised",
    ]
    assert written[1]["loss"] == 1.5 and written[2]["paths"] == [str(tmp_path / "a.png")]
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert (manifest["state"], manifest["step"]) == ("running", 1)


@pytest.mark.parametrize(
    ("error", "state"),
    [(StoppedByUserError("enough"), "stopped"), (ValueError("odd"), "failed"), (KeyboardInterrupt(), "failed")],
)
def test_the_manifest_says_why_a_run_ended(tmp_path, error, state):
    with claim(tmp_path) as run, pytest.raises(type(error)), recording(run, NoCallbacks()) as recorder:
        recorder.on_event(step_report(3))
        raise error
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert (manifest["state"], manifest["step"]) == (state, 3)
    assert manifest["message"] == f"{type(error).__name__}: {error}"


def test_losses_survive_a_torn_line_and_repeated_steps(tmp_path):
    with claim(tmp_path) as run:
        with recording(run, NoCallbacks()) as recorder:
            for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
                recorder.on_event(step_report(step, loss))
        with (run.folder / "events.jsonl").open("a") as file:
            file.write('{"event": "StepReport", "st')
        with recording(run, NoCallbacks()) as recorder:
            for step, loss in ((3, 0.33), (4, 1 / 3)):
                recorder.on_event(step_report(step, loss))
        assert read_losses(run) == (0.1, 0.2, 0.33, 1 / 3)


def test_settings_are_complete_and_json(tmp_path):
    config = replace(CONFIG, validation=ValidationConfig())
    settings = json.loads(json.dumps(settings_of(config, make_spec(), make_cache())))
    assert settings["train"] == json.loads(json.dumps(asdict(config)))
    assert ModelConfig(**settings["model"]) == make_spec().config
    (source,) = settings["sources"]
    assert DatasetConfig(**source["targets"]) == make_cache().dataset.sources[0].targets
    assert source["references"] is None


# --- what is damaged or left over ---


def finished_run(tmp_path, content=b"lora"):
    """A run that has published its LoRA; (its folder, the published file)"""
    with claim(tmp_path) as run:
        with_checkpoint(run, content)
        path = publish_lora(run, tmp_path / "loras", NoCallbacks())
        run.note(replace(run.manifest, state="finished", step=run.manifest.total_steps, lora=path.stem))
    return run.folder, path


def cut(path):
    path.write_bytes(path.read_bytes()[:2])


def test_a_damaged_copy_is_never_published(tmp_path):
    folder, path = finished_run(tmp_path)
    path.unlink()
    cut(folder / "bird.safetensors")
    with claim(tmp_path) as run:
        assert run.finished
        assert publish_lora(run, tmp_path / "loras", NoCallbacks()).read_bytes() == b"lora"
        assert run.lora_copy.read_bytes() == b"lora"


def test_a_damaged_checkpoint_does_not_matter_while_the_copy_is_whole(tmp_path):
    folder, path = finished_run(tmp_path)
    path.unlink()
    cut(folder / "checkpoints" / "step-000009" / "adapter.safetensors")
    cut(folder / "checkpoints" / "step-000009" / "state.json")
    with claim(tmp_path) as run:
        assert run.finished
        assert publish_lora(run, tmp_path / "loras", NoCallbacks()).read_bytes() == b"lora"


def test_a_run_whose_lora_is_damaged_everywhere_is_not_finished(tmp_path):
    folder, path = finished_run(tmp_path)
    for file in (folder / "bird.safetensors", folder / "checkpoints" / "step-000009" / "adapter.safetensors"):
        cut(file)
    with claim(tmp_path) as run:
        assert not run.finished
        with pytest.raises(CheckpointError, match=r"No copy of the LoRA in .*bird is as it was written"):
            publish_lora(run, tmp_path / "loras", NoCallbacks())
    assert path.read_bytes() == b"lora"


@pytest.mark.parametrize("content", ["", "{", '{"fingerprint": 1}', "[" * 100_000, '{"step": "many"}', "\0" * 50, None])
def test_a_damaged_manifest_is_rebuilt_from_the_checkpoints(tmp_path, content):
    with claim(tmp_path) as run:
        with_checkpoint(run)
    path = run.folder / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    with claim(tmp_path, replace(CONFIG, max_train_steps=20)) as again:
        assert (again.name, again.manifest.step, again.manifest.fingerprint) == ("bird", 9, "f")
        assert ["manifest.json of bird was damaged" in note for note in again.notes] == [True]
    assert json.loads(path.read_text())["step"] == 9
    with claim(tmp_path, print_of_run="other") as other:
        assert other.name == "bird-2"


def test_an_older_versions_manifest_is_read(tmp_path):
    folder, _ = finished_run(tmp_path)
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    heartbeat = values.pop("updated")
    del values["lora_sha256"]
    path.write_text(json.dumps(values | {"heartbeat": heartbeat}))
    with claim(tmp_path) as run:
        assert run.finished and run.notes == ()


def test_a_folder_that_a_killed_process_left_empty_is_taken_over(tmp_path):
    folder = tmp_path / "runs" / "bird"
    folder.mkdir(parents=True)
    (folder / "run.lock").write_bytes(b"")
    (folder / ".manifest.json.0123abcd.tmp").write_text("{")
    with claim(tmp_path) as run:
        assert (run.name, run.notes) == ("bird", ())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "run.lock"]


def test_a_folder_that_someone_works_in_is_not_taken_over(tmp_path):
    folder = tmp_path / "runs" / "bird"
    folder.mkdir(parents=True)
    with exclusive(folder / "run.lock"), claim(tmp_path) as run:
        assert run.name == "bird-2"


def test_leftovers_of_killed_processes_go(tmp_path):
    with claim(tmp_path) as run:
        folder = run.folder
    old, new = tmp_path / "loras" / ".old.safetensors.0.tmp", tmp_path / "loras" / ".new.safetensors.0.tmp"
    places = [folder, folder / "checkpoints", folder / "samples", folder / "debug", tmp_path / "loras"]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / ".cut.0.tmp").write_text("half")
    (folder / "checkpoints" / ".step-000003.0.tmp").mkdir()
    old.write_text("half")
    new.write_text("half")
    os.utime(old, (0, 0))
    with claim(tmp_path):
        pass
    left = {path.relative_to(tmp_path).as_posix() for place in places for path in place.glob(".*")}
    # Another process may be writing a LoRA right now: only what is older than a day goes.
    assert left == {"loras/.cut.0.tmp", "loras/.new.safetensors.0.tmp"}


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("settings", "the run bird has other settings, data or weights"),
        ("lora", "there is a LoRA file bird.safetensors"),
        ("restart", "restart is on"),
        ("folder", "the folder bird holds something else"),
    ],
)
def test_why_a_run_has_another_name_is_said(tmp_path, obstacle, reason):
    config = replace(CONFIG, restart=obstacle == "restart")
    if obstacle in ("settings", "restart"):
        with claim(tmp_path, print_of_run="other" if obstacle == "settings" else "f"):
            pass
    elif obstacle == "lora":
        (tmp_path / "loras").mkdir()
        (tmp_path / "loras" / "bird.safetensors").write_bytes(b"someone's")
    else:
        (tmp_path / "runs" / "bird").mkdir(parents=True)
        (tmp_path / "runs" / "bird" / "notes.txt").write_text("mine")
    with claim(tmp_path, config) as run:
        assert run.notes == (f"This run is bird-2, not bird: {reason}.",)


@pytest.mark.parametrize("damage", ["gone", "no text", "no object", "no loss", "deep"])
def test_losses_come_from_the_checkpoint_whatever_became_of_the_events(tmp_path, damage):
    with claim(tmp_path) as run:
        with_checkpoint(run)
        state = run.checkpoints / "step-000009" / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"losses": [0.5, 0.25]}))
        events = run.folder / "events.jsonl"
        content = {"no text": b"\xff\xfe", "no object": b"[1]\n", "no loss": b'{"event": "StepReport", "step": 1}\n'}
        content |= {"deep": b"[" * 100_000}
        if damage != "gone":
            events.write_bytes(content[damage])
        assert read_losses(run) == (0.5, 0.25)
        # Without a checkpoint the events are all there is: what can be read of them.
        shutil.rmtree(run.checkpoints)
        assert read_losses(run) == ()


def test_files_that_nobody_needs_do_not_end_a_run(tmp_path, caplog):
    with claim(tmp_path) as run:
        run.folder.joinpath("manifest.json").unlink()
        for name in ("manifest.json", "events.jsonl"):
            (run.folder / name).mkdir()
        with recording(run, NoCallbacks()) as recorder:
            recorder.on_event(step_report(1))
            recorder.on_event(CheckpointSaved(step=1, folder=tmp_path))
    assert "events.jsonl cannot be written" in caplog.text and "manifest.json could not be updated" in caplog.text


def test_a_name_that_makes_paths_too_long_is_refused_in_time(tmp_path):
    length = len(str(tmp_path.resolve() / "bird")) + LONGEST_INSIDE
    check_path_length(tmp_path, "bird", length)
    with pytest.raises(
        ConfigError, match=rf"run_name is 'bird'; .* up to {length} characters, .*at least 1 characters"
    ):
        check_path_length(tmp_path, "bird", length - 1)
