"""What the stages of a run share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..caches.cache import Cache
from ..events import Callbacks
from ..lora.inject import inject_lora
from ..lora.transformer import open_transformer
from ..models.contract import Family
from ..models.registry import family_of
from ..settings.run import TrainConfig
from ..weights.spec import ModelSpec
from .batches import BatchOrder
from .optimizer import make_ema, make_optimizer, make_scheduler

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


@dataclass(kw_only=True)
class TrainState:
    """The model in training and everything that a checkpoint must hold."""

    config: TrainConfig
    family: Family
    transformer: Any
    parameters: dict[str, nn.Parameter]
    """The adapter's, by name, float32."""
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    ema: EMAModel | None
    """Moving average of `parameters`, in their order; None without `use_ema`."""
    generator: torch.Generator
    """On the CPU; noise, noise levels and caption dropout all come from it."""
    order: BatchOrder
    metadata: Mapping[str, str]
    """Settings that go into the LoRA file; the step is added there."""
    step: int = 0
    """Optimiser steps done."""
    saved_step: int = 0
    """Step of the newest checkpoint."""
    losses: list[float] = field(default_factory=list)
    """One per step."""
    consistent: bool = True
    """False while the optimiser changes the adapter: what is between two steps must not be saved."""

    @property
    def batches_done(self) -> int:
        """Position in the data: number of the next batch."""
        return self.step * self.config.options.gradient_accumulation_steps

    def lora_metadata(self) -> dict[str, str]:
        return {**self.metadata, "step": str(self.step)}

    @contextlib.contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Around what comes before the optimiser: an error leaves no gradients, and the same numbers to be drawn."""
        drawn = self.generator.get_state()
        try:
            yield
        except BaseException:
            self.generator.set_state(drawn)
            self.optimizer.zero_grad()
            raise

    def update(self, loss: float) -> None:
        """One step of the optimiser, of the learning rate's schedule and of the moving average."""
        self.consistent = False
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.parameters.values())
        self.step += 1
        self.losses.append(loss)
        self.consistent = True

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the adapter has the weights that previews show and LoRA files hold: the moving average, if any."""
        if self.ema is None:
            yield
            return
        parameters = list(self.parameters.values())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)


@contextlib.contextmanager
def open_state(
    config: TrainConfig,
    spec: ModelSpec,
    cache: Cache,
    device: torch.device,
    metadata: Mapping[str, str],
    callbacks: Callbacks,
) -> Iterator[TrainState]:
    """The transformer with a fresh adapter and its optimiser; all of it is given back when the block ends.

    Raises:
        ModelError: the model cannot be loaded.
        LoraFileError: a LoRA of the spec does not fit.
    """
    options = config.options
    family = family_of(spec.config.model_family)
    with open_transformer(spec, device, callbacks, training=True) as transformer:
        targets = family.lora_targets(options.lora_target)
        parameters = inject_lora(transformer, targets, config.lora_rank, options.lora_alpha, config.seed)
        if options.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()
        optimizer = make_optimizer(parameters.values(), config)
        state = TrainState(
            config=config,
            family=family,
            transformer=transformer,
            parameters=parameters,
            optimizer=optimizer,
            scheduler=make_scheduler(optimizer, config),
            ema=make_ema(parameters.values(), options),
            # Not the adapter's seed itself, or the first noise would be the adapter's A over again.
            generator=torch.Generator("cpu").manual_seed(config.seed + 1),
            order=BatchOrder(cache, config.train_batch_size, config.seed),
            metadata=metadata,
        )
        del transformer, parameters, optimizer
        try:
            yield state
        finally:
            _release(state)


def _release(state: TrainState) -> None:
    """Frees what a traceback or a caller's frame may still point to."""
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer.state.clear()
    state.optimizer.param_groups.clear()
    state.parameters.clear()
    state.ema = state.transformer = None
