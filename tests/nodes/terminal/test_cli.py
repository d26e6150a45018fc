"""The console command, from arguments to files and exit codes, on the tiny twin."""

import importlib.util
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from comfyui_longcat.nodes.terminal.cli import main
from comfyui_longcat.training.sampling import prompts
from comfyui_longcat.training.settings.model import BASE_PRECISIONS
from PIL import Image

TRAIN, SAMPLE = "longcat_image_edit_train", "longcat_image_edit_sample"


@pytest.fixture
def api(repository):
    return lambda name: str(repository / "workflows" / "api" / f"{name}.json")


def _home(path):
    return ["--base-directory", str(path)]


def test_sampling_as_shipped(api, tmp_path, capsys):
    assert main(["run", api(SAMPLE), "--tiny", *_home(tmp_path)]) == 0
    (edited,) = (tmp_path / "output").glob("longcat-edit_*.png")
    assert Image.open(edited).size == (64, 64)
    assert f"Wrote:\n  {edited}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_training_as_shipped_then_sampling_with_its_lora(api, tmp_path, capsys):
    train = ["run", api(TRAIN), "--tiny", "--set", "TrainLoRA.max_train_steps=2", *_home(tmp_path)]
    assert main(train) == 0
    first = capsys.readouterr()
    assert re.search(r"step 00002/00002 \| loss \d", first.err)
    lora = tmp_path / "models" / "loras" / "longcat-edit-lora-tiny.safetensors"
    assert lora.is_file()
    assert str(lora) in first.out
    written = lora.read_bytes()

    assert main(train) == 0
    again = capsys.readouterr()
    assert "step 00001" not in again.err, "a finished run was trained again"
    assert str(lora) in again.out
    assert lora.read_bytes() == written

    sample = ["run", api(SAMPLE), "--tiny", "--set", f"LongCatLoadLoRA.lora_name={lora.name}", *_home(tmp_path)]
    assert main(sample) == 0


def test_too_little_memory_is_a_sentence_and_no_traceback(api, tmp_path, capsys, monkeypatch):
    def fail(*_args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(prompts, "encode_edit", fail)
    assert main(["run", api(SAMPLE), "--tiny", *_home(tmp_path)]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert re.search(
        r"^error: .*EncodeEditPrompt.*: Not enough memory \(at the start\)\. What helps, in this", shown[-1]
    )
    assert not [line for line in shown if "Traceback" in line]


def test_a_place_that_cannot_be_written_is_a_sentence_and_no_traceback(api, tmp_path, capsys):
    (tmp_path / "output").write_text("a file in the way")
    assert main(["run", api(SAMPLE), "--tiny", *_home(tmp_path)]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert re.search(rf"^error: .*{re.escape(str(tmp_path / 'output'))}.* could not be read or written", shown[-1])


def test_same_seed_same_picture(api, tmp_path):
    pictures = []
    for name in ("one", "two"):
        assert main(["run", api(SAMPLE), "--tiny", *_home(tmp_path / name)]) == 0
        (path,) = (tmp_path / name / "output").glob("*.png")
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]


def test_errors_are_one_message_and_exit_1(api, tmp_path, capsys):
    wrong = ["run", api(TRAIN), "--tiny", "--set", "PairDatasets.targets=x", *_home(tmp_path)]
    assert main(wrong) == 1
    assert capsys.readouterr().err.startswith("error: --set 'PairDatasets.targets=x'")
    folder = ["run", api(TRAIN), "--tiny", "--set", "2.instance_data_dir=gone", *_home(tmp_path)]
    assert main(folder) == 1
    shown = capsys.readouterr().err
    assert "(LongCatDataset)" in shown and "'gone'" in shown and "Traceback" not in shown
    assert main(["run", str(tmp_path / "absent.json")]) == 1
    assert main(["run", api(SAMPLE), "--server", "http://127.0.0.1:1"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        main(["run", str(tmp_path / "absent.json"), "--debug"])


def test_doctor(tmp_path, capsys):
    assert main(["doctor", *_home(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("python", "torch", "optimum-quanto", "device", str(tmp_path), "ready"):
        assert words in shown
    assert not list(tmp_path.iterdir())


def test_doctor_answers_for_each_precision(tmp_path, capsys, monkeypatch):
    # A Python without optimum-quanto.
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("optimum") else found(name))
    main(["doctor", *_home(tmp_path)])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert {name: lines[name].partition(":")[0] for name in BASE_PRECISIONS} == {
        "bf16": "works",
        "fp32": "works",
        "int8-quanto": "will not work",
        "int4-quanto": "will not work",
        "fp8-torchao": "works",
        "int8-torchao": "works",
    }
    assert "needs the package optimum-quanto, which is not installed" in lines["int8-quanto"]
    assert "computes in float32" in lines["fp32"] and "computes in bfloat16" in lines["int8-torchao"]


def test_doctor_asks_for_what_the_project_asks_for(repository):
    from comfyui_longcat.nodes.terminal.doctor import REQUIRED

    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]
    assert names == list(REQUIRED)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_saves_and_the_same_command_goes_on(api, tmp_path):
    steps = ["--set", "TrainLoRA.max_train_steps=200", "--set", "LongCatValidation.num_samples=1"]
    command = [sys.executable, "-m", "comfyui_longcat", "run", api(TRAIN), "--tiny", *steps, *_home(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if line.startswith("step 00004"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert "saved" in rest and "Traceback" not in rest
    (checkpoint,) = (tmp_path / "output" / "longcat").glob("*/checkpoints/step-*")
    reached = int(checkpoint.name.removeprefix("step-"))
    assert 4 <= reached < 200

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "resumes at step" in line:
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
        process.wait(60)
    assert f"resumes at step {reached + 1} of 200" in line


@pytest.mark.slow
def test_demo_in_short(tmp_path):
    import torch
    from comfyui_longcat.nodes.terminal.demo import run_demo
    from comfyui_longcat.nodes.terminal.demo_lessons import BorderEdit, MovesUp
    from comfyui_longcat.nodes.terminal.host import TerminalHost

    threads, lessons = torch.get_num_threads(), (BorderEdit(steps=2, unseen=2), MovesUp(steps=2, unseen=2))
    files = run_demo(TerminalHost(tmp_path, device="cpu"), lessons)
    assert torch.get_num_threads() == threads
    assert [path.name for path in files] == [
        *("edit_contact_sheet.png", "edit_loss_curve.png", "demo-edit.safetensors"),
        *("video_contact_sheet.png", "video_loss_curve.png", "demo-video.safetensors"),
    ]
    assert all(path.is_file() for path in files)
    for folder in ("longcat-example/targets", "longcat-example-clips/clips"):
        captions = [path.read_text(encoding="utf-8") for path in (tmp_path / "input" / folder).glob("*.txt")]
        assert len(captions) == 12 and all(captions)
        assert {caption.isascii() for caption in captions} == {True, False}, "no Chinese caption"
