"""A picture of few bytes and many pixels costs what its pixels cost, and no more."""

import subprocess
import sys

import pytest
from PIL import Image

SIDE = 9_000
"""Px; half of what Pillow refuses by itself."""

READ = """
import resource, sys
from pathlib import Path
from comfyui_longcat.training.data.media import crop_to, image_info, read_image

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = Path(sys.argv[1])
assert image_info(path).size == (9_000, 9_000)
after_head = peak()
assert crop_to(read_image(path), (64, 64)).size == (64, 64)
print(after_head, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
@pytest.mark.parametrize("mode", ["RGB", "1"])
def test_nine_thousand_pixels_square_stay_bounded(tmp_path, mode):
    path = tmp_path / "bomb.png"
    Image.new(mode, (SIDE, SIDE), 1).save(path, compress_level=9)
    assert path.stat().st_size < 300_000
    ended = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    after_head, at_the_end = map(int, ended.stdout.split())
    decoded = SIDE * SIDE * 3 / 1024
    assert at_the_end - after_head < 3 * decoded, "kB more than three pictures"
