"""What the video transformer cannot compute is refused, with the value, what is allowed, and what to do."""

import re

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError, ModelError
from comfyui_longcat.training.models.video.attention import KeyValues
from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel

SIZES = {
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 24,
    "adaln_tembed_dim": 32,
    "frequency_embedding_size": 16,
}


@pytest.fixture(scope="module")
def model():
    return LongCatVideoTransformer3DModel(**SIZES)


def inputs() -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.zeros(2, 16, 3, 4, 6),
        "timestep": torch.zeros(2),
        "encoder_hidden_states": torch.zeros(2, 64, 24),
        "encoder_attention_mask": torch.ones(2, 64),
    }


def test_what_the_faults_are_made_from_is_in_order(model):
    with torch.no_grad():
        assert model(**inputs()).shape == (2, 16, 3, 4, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "hidden_size is 64 and num_heads 3"),
        ({"num_heads": 16}, "multiple of 8"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"patch_size": [2, 2, 2]}, "patch_size is [2, 2, 2]"),
        ({"patch_size": [2, 2]}, "patch_size is [2, 2]"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        LongCatVideoTransformer3DModel(**{**SIZES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_states": torch.zeros(2, 16, 3, 5, 6)}, "3 frames of 5 x 6"),
        ({"hidden_states": torch.zeros(2, 16, 3, 4, 7)}, "multiple of 16 px"),
        ({"hidden_states": torch.zeros(2, 16, 0, 4, 6)}, "at least one frame"),
        ({"hidden_states": torch.zeros(2, 12, 3, 4, 6)}, "[2, 12, 3, 4, 6]; wanted is [batch, 16,"),
        ({"hidden_states": torch.zeros(16, 3, 4, 6)}, "[16, 3, 4, 6]"),
        ({"timestep": torch.zeros(2, 4)}, "[2, 4]; wanted is [2]"),
        ({"timestep": torch.zeros(1)}, "[2, 3], one for each of its latent frames"),
        ({"encoder_hidden_states": torch.zeros(2, 64, 20)}, "[2, 64, 20]; wanted is [2, slots, 24]"),
        ({"encoder_hidden_states": torch.zeros(1, 64, 24)}, "wanted is [2, slots, 24]"),
        ({"encoder_attention_mask": torch.ones(2, 63)}, "[2, 63]; wanted is that of the embeddings, [2, 64]"),
        ({"num_cond_latents": 3}, "num_cond_latents is 3 of 3 latent frames"),
        ({"num_cond_latents": -1}, "between 0 and 2"),
        ({"cond_cache": []}, "0 entries"),
        ({"cond_cache": [KeyValues(*torch.zeros(2, 1, 2, 7, 32))] * 2}, "2 entries of 7 tokens"),
        ({"cond_cache": [KeyValues(*torch.zeros(2, 1, 2, 6, 32))] * 3}, "3 entries of 6 tokens"),
        ({"cond_cache": [KeyValues(*torch.zeros(2, 3, 2, 6, 32))] * 2}, "of 3 samples; wanted are 1 or 2"),
        (
            {"cond_cache": [KeyValues(*torch.zeros(2, 1, 2, 6, 32))] * 2, "num_cond_latents": 1},
            "num_cond_latents is 1; wanted are 2 entries",
        ),
    ],
)
def test_inputs_that_cannot_be_computed_are_refused(model, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        model(**{**inputs(), **changes})


def test_condition_frames_of_a_wrong_size_are_refused(model):
    with pytest.raises(ConfigError, match="1 frames of 5 x 6"):
        model.cache_cond_latents(torch.zeros(1, 16, 1, 5, 6))
