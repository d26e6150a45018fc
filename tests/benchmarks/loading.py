"""Peak memory of loading a transformer block by block, as a ratio to what stays when it is loaded; Linux only.

Run: python tests/benchmarks/loading.py

Each precision loads the same sharded folder in a process of its own. Counted is private memory (RssAnon), which leaves
out the pages of the weight files, sampled while loading, above what the process had before. The model is a small one of
the released model's classes and proportions; there a block is a smaller share, so that the ratio is nearer to 1.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

BLOCKS_ABOVE = 1.3
"""The goal: at most this many of the largest blocks in bf16 above the loaded weights: the one in work, and scratch."""

PRECISIONS = ("bf16", "int8-quanto", "int8-torchao", "fp8-torchao", "int4-quanto")
SHAPE = {
    "num_layers": 4,
    "num_single_layers": 8,
    "attention_head_dim": 128,
    "num_attention_heads": 8,
    "joint_attention_dim": 1024,
    "pooled_projection_dim": 64,
    "axes_dims_rope": [16, 56, 56],
}


def build(folder: Path) -> None:
    """A sharded transformer folder of about 280 M parameters, 0.56 GB in bf16."""
    import torch
    from diffusers import LongCatImageTransformer2DModel

    with torch.device("meta"):
        model = LongCatImageTransformer2DModel(**SHAPE).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    model.save_pretrained(folder, max_shard_size="200MB")


def private_bytes() -> int:
    """This process's private memory."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(folder: Path, precision: str) -> tuple[int, int, int]:
    """(peak, size of the loaded weights, size of the largest block in bf16) in bytes."""
    import torch
    from comfyui_longcat.training.settings.model import ModelConfig
    from comfyui_longcat.training.weights.components import _finisher, _transformer_from_folder
    from comfyui_longcat.training.weights.quantisation import QUANTISED_PRECISIONS, quantise
    from comfyui_longcat.training.weights.streaming import BlockSwap, weight_bytes

    torch.set_num_threads(1)
    if precision in QUANTISED_PRECISIONS:
        # So that the libraries themselves, and int4's compiled extension, are in memory before.
        quantise(torch.nn.ModuleList([torch.nn.Linear(128, 128, dtype=torch.bfloat16)]), precision)
    import diffusers

    diffusers.LongCatImageTransformer2DModel  # noqa: B018  (lazy: this imports it)
    cpu = torch.device("cpu")
    finish = _finisher(ModelConfig(base_model_precision=precision), cpu, BlockSwap(device=cpu), training=False)
    highest, done = [0], threading.Event()
    before = private_bytes()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = _transformer_from_folder(folder, torch.bfloat16, finish)
    done.set()
    watcher.join()
    largest = 2 * sum(math.prod(parameter.shape) for parameter in model.transformer_blocks[0].parameters())
    return highest[0] - before, weight_bytes(model), largest


def main() -> int:
    """Prints a line for each precision; 1 when a ratio misses the goal."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        for precision in PRECISIONS:
            command = [sys.executable, "-W", "ignore", __file__, folder, precision]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, size, block = map(int, result.stdout.split()[-3:])
            goal = size + BLOCKS_ABOVE * block
            print(
                f"{precision:13} weights {size / 1e6:6.1f} MB, peak while loading {peak / 1e6:6.1f} MB: ratio"
                f" {peak / size:.2f}, goal {goal / size:.2f} (one block in bf16: {block / 1e6:.1f} MB)"
            )
            missed += peak > goal
    return int(missed > 0)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(*measure(Path(sys.argv[1]), sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
