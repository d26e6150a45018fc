"""A host for node tests: folders below a temporary one, allowed roots as on a server, the CPU."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.training.events import Event
from comfyui_longcat.training.paths import AllowedRoots
from comfyui_longcat.training.weights.choice import SingleFileDirs


@dataclass
class FolderHost:
    """Fulfils `Host`; keeps the events, and stops after `stop_after` optimiser or sampling steps."""

    home: Path
    models: tuple[Path, ...]
    events: list[Event] = field(default_factory=list)
    stop_after: int | None = None
    asked: int = 0

    def device(self):
        import torch

        return torch.device("cpu")

    def data_roots(self) -> AllowedRoots:
        return AllowedRoots(bases=(self.home / "input",), roots=(self.home / "input", self.home / "output"))

    def model_roots(self) -> AllowedRoots:
        places = (*self.models, *self.single_file_dirs().transformer)
        return AllowedRoots(bases=places, roots=places)

    def models_dirs(self) -> tuple[Path, ...]:
        return self.models

    def single_file_dirs(self) -> SingleFileDirs:
        folders = {kind: (self.home / kind,) for kind in ("transformer", "vae", "text_encoder", "tokenizer")}
        return SingleFileDirs(**folders)

    def lora_dirs(self) -> tuple[Path, ...]:
        return (self.home / "loras",)

    def lora_names(self) -> list[str]:
        return sorted(path.name for path in (self.home / "loras").glob("*.safetensors"))

    def runs_dir(self) -> Path:
        return self.home / "output" / "longcat"

    def cache_dir(self) -> Path:
        return self.home / "output" / "longcat-cache"

    def cache_roots(self) -> AllowedRoots:
        return AllowedRoots(bases=(self.cache_dir(),), roots=(self.cache_dir(),))

    def callbacks(self, node_id: str | None) -> "FolderHost":
        return self

    def preview(self, latents):
        return None

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def should_stop(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after

    @contextlib.contextmanager
    def work(self, node_id: str | None) -> Iterator["FolderHost"]:
        import torch

        with torch.inference_mode(False), torch.no_grad():
            yield self


@contextlib.contextmanager
def inside(home: Path, tiny_checkpoint: Path) -> Iterator[FolderHost]:
    """Nodes run inside a host at `home`, in inference mode as ComfyUI runs them."""
    import torch

    (home / "input").mkdir(exist_ok=True)
    host = FolderHost(home=home, models=(tiny_checkpoint.parent,))
    with use_host(host), torch.inference_mode():
        yield host


@pytest.fixture
def host(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[FolderHost]:
    with inside(tmp_path, tiny_checkpoint) as host:
        yield host


@pytest.fixture(scope="module")
def module_host(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[FolderHost]:
    """One host for a whole test file, for tests that only read what an earlier stage made."""
    with inside(tmp_path_factory.mktemp("home"), tiny_checkpoint) as host:
        yield host
