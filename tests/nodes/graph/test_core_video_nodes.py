"""The terminal's CreateVideo and SaveVideo: the file that they write is read back."""

from fractions import Fraction

import av
import pytest
import torch
from comfyui_longcat.nodes.graph.core_nodes import CreateVideo, SaveVideo
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.errors import ConfigError, PathError


@pytest.fixture
def host(tmp_path):
    terminal = TerminalHost(tmp_path)
    with use_host(terminal):
        yield terminal


def clip(frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth, as H.264 keeps such pictures nearly as they are; brighter from frame to frame."""
    ramp = torch.linspace(0, 0.5, width).expand(height, width)
    images = [torch.stack([ramp, ramp.flip(1), torch.full_like(ramp, n / frames)], dim=-1) for n in range(frames)]
    return torch.stack(images)


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) / 255 for frame in container.decode(video=0)]
        return torch.stack(frames), stream.average_rate, stream.codec_context.name, stream.codec_context.pix_fmt


@pytest.mark.parametrize(("depth", "planes"), [(8, "yuv420p"), (10, "yuv420p10le")])
def test_a_saved_video_has_all_frames_in_order_at_their_speed(host, depth, planes):
    (video,) = CreateVideo().create(clip(), 15.0, bit_depth=depth)
    assert SaveVideo().save(video, "video/clip", "auto", "auto") == (video,)
    (path,) = host.files
    assert path == host.output_dir() / "video" / "clip_00001_.mp4"
    frames, rate, codec, found = read(path)
    assert (frames.shape, rate, codec, found) == ((9, 48, 64, 3), Fraction(15), "h264", planes)
    difference = (frames - clip()).abs().mean().item()
    print(f"{depth} bits: mean difference {difference:.4f}")
    assert difference < 0.02
    assert frames[..., 2].mean(dim=(1, 2)).diff().min() > 0.05


def test_nothing_is_overwritten_or_written_elsewhere(host):
    (video,) = CreateVideo().create(clip(1), 15.0)
    for _ in range(2):
        SaveVideo().save(video, "clip", "mp4", "h264")
    assert [path.name for path in host.files] == ["clip_00001_.mp4", "clip_00002_.mp4"]
    with pytest.raises(PathError, match="which is outside"):
        SaveVideo().save(video, "../clip", "auto", "auto")
    assert {path.name for path in host.output_dir().iterdir()} == {"clip_00001_.mp4", "clip_00002_.mp4"}


def test_odd_sides_are_refused_before_a_file_is_begun(host):
    (video,) = CreateVideo().create(clip(1, 47, 64), 15.0)
    with pytest.raises(ConfigError, match="The video is 64x47 px; both sides must be even"):
        SaveVideo().save(video, "clip", "auto", "auto")
    assert not host.output_dir().exists()
