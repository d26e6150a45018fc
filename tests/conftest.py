"""Fixtures that several test files share. Nothing heavy is imported until a test asks for it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository, which is also the package's folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the light twin of LongCat-Image-Edit; tests must not write into it."""
    from comfyui_longcat.training.tiny.image_checkpoint import build_tiny_image_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny-edit"
    build_tiny_image_checkpoint(folder)
    return folder


@pytest.fixture
def example_pairs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders (targets, references) of 12 drawn pairs with instructions; each test gets its own."""
    from comfyui_longcat.training.tiny.world import draw_example_pairs

    targets, references = tmp_path / "targets", tmp_path / "references"
    draw_example_pairs(targets, references)
    return targets, references
