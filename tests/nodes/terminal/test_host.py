"""The terminal host and the core nodes' stand-ins."""

import os
import signal

import pytest
import torch
from comfyui_longcat.nodes.graph.core_nodes import LoadImage, SaveImage, input_picture
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import StopFlag, TerminalCallbacks, TerminalHost, step_line
from comfyui_longcat.training.errors import DiskError, OutOfMemoryError, PathError
from comfyui_longcat.training.events import RunFinished, SamplesReady, StageProgress, StepReport, WarningRaised
from PIL import Image

REPORT = StepReport(
    step=120, total_steps=2000, loss=0.42131, grad_norm=0.871, learning_rate=1e-4, seconds=1.618, bucket=(768, 1024)
)


@pytest.fixture
def host(tmp_path):
    terminal = TerminalHost(tmp_path, device="cpu")
    with use_host(terminal):
        yield terminal


def test_step_line_is_the_house_s():
    assert step_line(REPORT) == ("step 00120/02000 | loss 0.4213 | grad 0.87 | lr 1.0e-04 | 1.62 s | bucket 768x1024")


def test_work_leaves_inference_mode_and_comes_back(host):
    with torch.inference_mode():
        with host.work("7") as callbacks:
            assert not callbacks.should_stop()
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()


def test_too_little_memory_is_said_with_the_stage_that_failed(host):
    with pytest.raises(OutOfMemoryError, match=r"^Not enough memory \(caching latents 3/12\)\. What helps, in this"):
        with host.work("7") as callbacks:
            callbacks.on_event(StageProgress(stage="caching latents", done=3, total=12))
            torch.empty(2**46)


def test_a_full_disk_is_said_with_the_step_that_was_done(host):
    with pytest.raises(
        DiskError, match=r"^The disk is full.*\(training, after step 120/2000\): events.jsonl could not"
    ):
        with host.work("7") as callbacks:
            callbacks.on_event(REPORT)
            raise OSError(28, "No space left on device", "events.jsonl")


def test_every_path_is_the_users_own(host, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    assert host.data_roots().resolve_folder(str(outside), "folder") == outside.resolve()
    (host.input_dir() / "mine").mkdir(parents=True)
    assert host.data_roots().resolve_folder("mine", "folder") == (host.input_dir() / "mine").resolve()


def test_lora_names_are_relative_and_sorted(host):
    folder = host.lora_dirs()[0]
    assert host.lora_names() == []
    (folder / "edits").mkdir(parents=True)
    for name in ("b.safetensors", "edits/a.safetensors", "notes.txt"):
        (folder / name).touch()
    assert host.lora_names() == ["b.safetensors", "edits/a.safetensors"]


def test_events_become_lines_and_files(host, capsys, tmp_path):
    callbacks = TerminalCallbacks(host)
    sample, lora = tmp_path / "sample.png", tmp_path / "lora.safetensors"
    callbacks.on_event(StageProgress(stage="caching latents", done=3, total=3))
    callbacks.on_event(REPORT)
    callbacks.on_event(WarningRaised(message="look here"))
    callbacks.on_event(SamplesReady(step=4, images=(), paths=(sample,)))
    callbacks.on_event(RunFinished(step=8, lora=lora))
    shown = capsys.readouterr()
    assert shown.out == ""
    for words in ("caching latents 3/3", step_line(REPORT), "warning: look here", str(lora)):
        assert words in shown.err
    assert host.files == [sample, lora]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send SIGTERM to a handler")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_is_given_back_after(number, host):
    before = signal.getsignal(number)
    flag = StopFlag()
    callbacks = TerminalCallbacks(TerminalHost(host.home, stop=flag))
    with flag.on_signals():
        assert not callbacks.should_stop()
        signal.raise_signal(number)
        assert callbacks.should_stop()
        assert signal.getsignal(number) == signal.SIG_DFL, "a second one would not end the program"
    assert signal.getsignal(number) == before


def test_load_image_turns_and_splits_off_alpha(host):
    host.input_dir().mkdir(parents=True)
    turned = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(host.input_dir() / "turned.jpg", exif=exif)
    Image.new("RGBA", (8, 4), (0, 255, 0, 51)).save(host.input_dir() / "clear.png")
    image, mask = LoadImage().load_image("turned.jpg")
    assert image.shape == (1, 8, 4, 3)
    assert mask.shape == (1, 64, 64) and not mask.any()
    image, mask = LoadImage().load_image("clear.png [input]")
    assert torch.equal(image[0, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(mask, torch.full((1, 4, 8), 0.8))


def test_pictures_are_numbered_and_never_replaced(host):
    batch = torch.rand(2, 4, 8, 3)
    for _ in range(2):
        SaveImage().save_images(batch, "sub/picture")
    names = [f"picture_{number:05d}_.png" for number in (1, 2, 3, 4)]
    assert sorted(path.name for path in (host.output_dir() / "sub").iterdir()) == names
    assert [path.name for path in host.files] == names
    again, _ = LoadImage().load_image(f"sub/{names[1]} [output]")
    # Eight bits, cut off as core does it.
    torch.testing.assert_close(again[0], (batch[1] * 255).floor() / 255)


@pytest.mark.parametrize("prefix", ["../out", "/tmp/out", "", "a/../../out"])
def test_pictures_stay_in_the_output_folder(host, prefix):
    with pytest.raises(PathError, match="which is outside"):
        SaveImage().save_images(torch.zeros(1, 4, 4, 3), prefix)


def test_absent_and_broken_pictures(host):
    with pytest.raises(PathError, match="no such picture"):
        input_picture(host, "gone.png")
    host.input_dir().mkdir(parents=True)
    (host.input_dir() / "text.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(PathError, match="no picture that can be read"):
        LoadImage().load_image("text.png")
