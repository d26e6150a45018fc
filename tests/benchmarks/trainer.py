"""The trainer's step against a bare loop on the same tiny model; the goal is a ratio of at most 1.05.

Run: python tests/benchmarks/trainer.py

The bare loop is forward, loss, backward, clip, optimiser step on one batch that is in memory with all its inputs
prepared. The trainer's step also reads its batch from the cache, draws, packs, keeps the learning rate and reports to
a recorder that writes the run's files. Both train adapters of their own on the same data, by turns in one process;
the medians are compared. Times are CPU seconds of one thread, which other programs on the machine disturb least.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE = 256
"""Px; tokens: 256 of the target, 256 of the reference, about 530 of text."""
WARM_UP, ROUNDS = 3, 31


def build_cache(folder: Path):
    """(spec, cache) of drawn pairs on the tiny twin."""
    import torch
    from comfyui_longcat.training.caches.cache import CacheFolders
    from comfyui_longcat.training.caches.latents import cache_latents
    from comfyui_longcat.training.caches.text import cache_text
    from comfyui_longcat.training.data.sets import pair_datasets
    from comfyui_longcat.training.events import NoCallbacks
    from comfyui_longcat.training.settings.dataset import DatasetConfig
    from comfyui_longcat.training.settings.model import ModelConfig
    from comfyui_longcat.training.tiny.examples import draw_example_pairs
    from comfyui_longcat.training.weights.spec import ModelSpec

    targets, references = folder / "targets", folder / "references"
    draw_example_pairs(targets, references, count=4, size=SIZE)
    pairs = pair_datasets(
        DatasetConfig(id="targets", instance_data_dir=str(targets), resolution=str(SIZE)),
        DatasetConfig(
            id="references",
            instance_data_dir=str(references),
            dataset_type="conditioning",
            caption_strategy="none",
            resolution=str(SIZE),
        ),
    )
    spec = ModelSpec(config=ModelConfig(model_flavour="tiny-edit"), models_dirs=(folder / "models",))
    device, nobody = torch.device("cpu"), NoCallbacks()
    folders = CacheFolders(targets=folder / "cache" / "targets", references=folder / "cache" / "references")
    cache, _ = cache_latents(pairs, spec, folders, device, nobody)
    cache, _ = cache_text(cache, spec, folder / "cache" / "text", device, nobody)
    return spec, cache


@contextlib.contextmanager
def contestants(folder: Path) -> Iterator[tuple[Callable, Callable]]:
    """(ours, bare): each does one step of batch size 1."""
    import torch
    from comfyui_longcat.training.events import NoCallbacks
    from comfyui_longcat.training.loop.record import recording
    from comfyui_longcat.training.loop.run_folder import claim_run
    from comfyui_longcat.training.loop.state import open_state
    from comfyui_longcat.training.loop.train import train_one_step
    from comfyui_longcat.training.settings.run import TrainConfig

    spec, cache = build_cache(folder)
    config = TrainConfig(max_train_steps=10_000)
    device, nobody = torch.device("cpu"), NoCallbacks()
    with (
        claim_run(config, "benchmark", folder / "runs", folder / "loras") as run,
        recording(run, nobody) as recorder,
        open_state(config, spec, cache, device, {}, nobody) as state,
        open_state(config, spec, cache, device, {}, nobody) as other,
    ):
        yield lambda: recorder.on_event(train_one_step(state)), bare_step(other)


def bare_step(state) -> Callable:
    """What has to be done at least, on the model and with the optimiser of `state`."""
    import torch
    from comfyui_longcat.training.loop.batches import load_batch
    from comfyui_longcat.training.models.image.latents import pack_latents

    batch = load_batch(state.order.batch(0))
    inputs = state.family.prepare_inputs(batch.latents.shape, batch.prompt_embeds, batch.cond_latents)
    transformer, optimizer, parameters = state.transformer, state.optimizer, list(state.parameters.values())
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.5])
    dtype = transformer.dtype
    tokens = torch.cat([pack_latents((batch.latents + noise) / 2), inputs.packed_cond_latents], dim=1).to(dtype)
    target = pack_latents(noise - batch.latents)
    arguments = {
        "hidden_states": tokens,
        "encoder_hidden_states": inputs.prompt_embeds.to(dtype),
        "timestep": sigmas,
        "img_ids": inputs.img_ids,
        "txt_ids": inputs.txt_ids,
        "return_dict": False,
    }

    def step() -> None:
        output = transformer(**arguments)[0][:, : target.shape[1]]
        torch.nn.functional.mse_loss(output.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work: Callable) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Prints the medians and their ratio; 1 when the goal is missed."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contestants(Path(folder)) as (ours, bare):
        times = [(seconds(ours), seconds(bare)) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"one step, batch 1, {SIZE}x{SIZE}, median of {ROUNDS} by turns:")
    print(f"trainer {own:.4f} s, bare loop {other:.4f} s, ratio {own / other:.3f} (goal: at most 1.05)")
    return int(own > 1.05 * other)


if __name__ == "__main__":
    sys.exit(main())
