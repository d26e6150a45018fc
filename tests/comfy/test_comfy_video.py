"""Clips in a real ComfyUI: a tiny image-to-video training, then a sample that core's SaveVideo writes."""

import json
import subprocess

import av
import pytest
import torch
from comfyui_longcat.nodes.graph.core_nodes import draw_sample
from comfyui_longcat.nodes.terminal.cli import main
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture
def run(server, repository, tmp_path, capsys):
    """`longcat run --tiny --server` of a shipped workflow; gives what it prints."""

    def run(name: str, *settings: str) -> str:
        command = ["run", str(repository / "workflows" / "api" / f"{name}.json"), "--tiny", "--server", server.url]
        command += ["--base-directory", str(tmp_path)]
        for setting in settings:
            command += ["--set", setting]
        code = main(command)
        shown = capsys.readouterr()
        assert code == 0, f"{shown.err}\n{server.log_end()}"
        return shown.out

    return run


def frames_of(path) -> torch.Tensor:
    """[F, H, W, 3], 0..1"""
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 15
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) / 255 for f in container.decode(video=0)])


def losses(server, run_name: str) -> list[float]:
    file = server.base / "output" / "longcat" / run_name / "events.jsonl"
    events = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [event["loss"] for event in events if "loss" in event]


@pytest.mark.parametrize("kind", ["i2v", "t2v"])
def test_training_and_then_sampling_with_its_lora(server, run, kind):
    run(f"longcat_video_{kind}_train")
    name = f"longcat-{kind}-lora-tiny"
    assert len(losses(server, name)) == 8
    assert (server.base / "models" / "loras" / f"{name}.safetensors").is_file()
    shown = run(f"longcat_video_{kind}_sample", f"LongCatLoadLoRA.lora_name={name}.safetensors")
    assert f"output/video/longcat-{kind}_00001_.mp4" in shown
    frames = frames_of(server.base / "output" / "video" / f"longcat-{kind}_00001_.mp4")
    assert frames.shape == (9, 64, 64, 3)
    assert frames.std() > 0.05


def test_the_saved_clip_begins_with_the_start_frame(server, run):
    picture = server.base / "input" / "start.png"
    draw_sample(picture)
    run("longcat_video_i2v_sample", "LoadImage.image=start.png", "SaveVideo.filename_prefix=started")
    frames = frames_of(server.base / "output" / "started_00001_.mp4")
    with Image.open(picture) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").resize((64, 64)).tobytes()), dtype=torch.uint8)
    wanted = pixels.view(64, 64, 3) / 255
    near, far = ((frames[place] - wanted).abs().mean().item() for place in (0, -1))
    print(f"mean difference to the picture: first frame {near:.3f}, last frame {far:.3f}")
    assert len(frames) == 9
    assert near < 0.05 < far


def test_previews_of_clips_are_cores_for_wan(comfy, repository, tmp_path):
    """ComfyUI's own latent2rgb picture of the middle frame, by the format that core's Wan 2.1 has."""
    code = """
import sys
sys.path[:0] = [".", sys.argv[1]]
from comfy.cli_args import args
args.cpu, args.preview_method = True, type(args.preview_method).Latent2RGB
import torch, latent_preview, comfy.latent_formats
from comfyui_longcat.nodes.bridge import ComfyHost
latents = torch.randn(1, 16, 1, 6, 8, generator=torch.Generator().manual_seed(0))
core = latent_preview.get_previewer(torch.device("cpu"), comfy.latent_formats.Wan21())
host = ComfyHost()
host.preview(latents[:, :, 0])
same = host.preview(latents).tobytes() == core.decode_latent_to_preview(latents).tobytes()
other = host.preview(latents[:, :, 0]).tobytes() == core.decode_latent_to_preview(latents).tobytes()
print("RESULT", same, other)
"""
    (tmp_path / "comfyui_longcat").symlink_to(repository, target_is_directory=True)
    done = subprocess.run(
        [comfy.python, "-c", code, str(tmp_path)], cwd=comfy.path, capture_output=True, text=True, timeout=300
    )
    assert "RESULT True False" in done.stdout, done.stdout[-2000:] + done.stderr[-3000:]
