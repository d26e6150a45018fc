"""Peak memory of reading one clip of 93 frames at 480x832, and of its whole way from a folder into the cache, with the
tiny twin's VAE; the goal is below 2 GiB above the imports for both.

Run: python tests/benchmarks/video_data.py

The source is a video of 30 seconds in 1080p at 30 per second, longer and larger than the clip; the reading is from its
end. In process memory (VmHWM): what decoder, resize, crop, the clip's own pixels and the VAE need together.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

SIZE, FRAMES, FPS = (832, 480), 93, 15
SOURCE_SIZE, SOURCE_SECONDS, SOURCE_FPS = (1920, 1080), 30, 30
GOAL_GIB = 2.0


def write_source(path: Path) -> None:
    """A long moving gradient; encoded frame by frame."""
    import av
    import numpy as np

    width, height = SOURCE_SIZE
    row = np.linspace(0, 255, width)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=SOURCE_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(SOURCE_SECONDS * SOURCE_FPS):
            levels = np.roll(row, 8 * number).astype(np.uint8)
            picture = np.broadcast_to(levels[None, :, None], (height, width, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())


def peak_gib() -> float:
    """Highest resident memory since `forget_peak`, by Linux's own book."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> int:
    """Prints the peaks; 1 when the goal is missed."""
    import multiprocessing

    if not Path("/proc/self/clear_refs").exists():
        print("skipped: peak memory is read from /proc, which only Linux has")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "clips" / "source.mp4"
        source.parent.mkdir()
        # In a process of its own, so that the encoder's memory is not counted.
        writer = multiprocessing.get_context("spawn").Process(target=write_source, args=(source,))
        writer.start()
        writer.join()
        used = max(measure(source), measure_caching(source))
    print(f"goal: below {GOAL_GIB} GiB above the imports: {'met' if used < GOAL_GIB else 'MISSED'}")
    return int(used >= GOAL_GIB)


def measure(source: Path) -> float:
    """GiB above the imports."""
    import av  # noqa: F401
    import torch
    from comfyui_longcat.training.data.clips import exact_rate, read_clip
    from comfyui_longcat.training.data.video_files import probe_video
    from PIL import Image  # noqa: F401

    torch.set_num_threads(1)
    forget_peak()
    imports = peak_gib()
    start = time.perf_counter()
    info = probe_video(source)
    probing, probed = peak_gib() - imports, time.perf_counter()
    available = info.frames_at(exact_rate(FPS))
    pixels = read_clip(source, available - FRAMES, FRAMES, FPS, SIZE)
    used, seconds = peak_gib() - imports, time.perf_counter()
    own = pixels.numel() * pixels.element_size() / 2**30
    print(f"imports {imports:.2f} GiB; source {info.size}, {info.frames} frames, {float(info.fps):.2f} per second")
    print(f"probing: {probing:.2f} GiB above the imports, {probed - start:.2f} s")
    print(f"clip {tuple(pixels.shape)}: {used:.2f} GiB above the imports, {own:.2f} of them its pixels,")
    print(f"{seconds - probed:.2f} s")
    return used


def measure_caching(source: Path) -> float:
    """GiB above the imports, from the folder of `source` to its cached latents."""
    import torch
    from comfyui_longcat.training.caches.cache import CacheFolders
    from comfyui_longcat.training.caches.latents import cache_latents, load_latents
    from comfyui_longcat.training.data.sets import scan_dataset
    from comfyui_longcat.training.events import NoCallbacks
    from comfyui_longcat.training.settings.dataset import DatasetConfig
    from comfyui_longcat.training.settings.model import ModelConfig
    from comfyui_longcat.training.weights.spec import ModelSpec
    from diffusers import AutoencoderKLWan  # noqa: F401

    source.with_suffix(".txt").write_text("a moving gradient", encoding="utf-8")
    work = source.parents[1] / "work"
    model = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    dataset = DatasetConfig(
        instance_data_dir=str(source.parent),
        dataset_type="video",
        resolution=f"{SIZE[0]}x{SIZE[1]}",
        num_frames=FRAMES,
        fps=float(FPS),
    )
    forget_peak()
    imports = peak_gib()
    start = time.perf_counter()
    cache, _ = cache_latents(
        scan_dataset(dataset),
        ModelSpec(config=model, models_dirs=(work / "models",)),
        CacheFolders(targets=work / "targets", references=work / "references"),
        torch.device("cpu"),
        NoCallbacks(),
    )
    used, seconds = peak_gib() - imports, time.perf_counter() - start
    shape = tuple(load_latents(cache.records[0].latents).shape)
    print(f"folder to cached latents {shape}: {used:.2f} GiB above the imports, {seconds:.1f} s")
    return used


if __name__ == "__main__":
    sys.exit(main())
