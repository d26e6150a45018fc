import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.models.image import latents as own

CONFIG = {"shift_factor": 0.1159, "scaling_factor": 0.3611}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    difference = (ours.double() - theirs.double()).abs().max().item()
    print(f"{name}: max difference {difference:.2e}")
    return difference


@pytest.fixture(scope="module")
def edit_pipeline():
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit

    return pipeline_longcat_image_edit


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (2, 2)])
def test_packing_equals_diffusers(edit_pipeline, height, width):
    latents = randn(2, 16, height, width)
    theirs = edit_pipeline.LongCatImageEditPipeline._pack_latents(latents, 2, 16, height, width)
    ours = own.pack_latents(latents)
    assert largest_difference("pack", ours, theirs) == 0
    unpacked = edit_pipeline.LongCatImageEditPipeline._unpack_latents(theirs, 8 * height, 8 * width, 8)
    assert largest_difference("unpack", own.unpack_latents(ours, height, width), unpacked) == 0
    assert torch.equal(own.unpack_latents(ours, height, width), latents)


def test_packing_accepts_tensors_that_are_not_contiguous():
    latents = randn(1, 4, 8, 16).transpose(2, 3)
    assert torch.equal(own.unpack_latents(own.pack_latents(latents), 16, 8), latents)


def test_odd_latents_are_refused_with_their_size_in_pixels():
    with pytest.raises(ConfigError, match=r"104x64 px.*multiples of 16"):
        own.pack_latents(randn(1, 16, 8, 13))


def test_position_ids_equal_diffusers(edit_pipeline):
    length, height, width = 838, 8, 12
    prepare = edit_pipeline.prepare_pos_ids
    text = prepare(modality_id=0, type="text", start=(0, 0), num_token=length)
    assert largest_difference("text ids", own.text_position_ids(length), text) == 0
    # The released numbers of what is drawn and of what is given.
    for number, kind in ((1, own.TARGET), (2, own.REFERENCE)):
        theirs = prepare(modality_id=number, type="image", start=(length, length), height=height // 2, width=width // 2)
        ours = own.image_position_ids(kind, height, width, length)
        assert largest_difference(f"image ids {kind}", ours, theirs) == 0


def test_position_ids_are_float32_tables_without_batch():
    text, image = own.text_position_ids(5), own.image_position_ids(own.REFERENCE, 4, 6, 5)
    assert text.dtype == image.dtype == torch.float32
    assert text.tolist() == [[0, i, i] for i in range(5)]
    assert image.tolist() == [[2, 5 + r, 5 + c] for r in range(2) for c in range(3)]


def test_normalisation_is_the_released_formula_and_its_inverse():
    raw = randn(2, 16, 4, 4) * 3
    latents = own.normalise(raw, CONFIG)
    assert largest_difference("normalise", latents, (raw - 0.1159) * 0.3611) == 0
    assert largest_difference("there and back", own.denormalise(latents, CONFIG), raw) < 2e-6
