"""What the tests of prompts need of every version of transformers."""

import inspect

import pytest


@pytest.fixture
def typed(text_encoder):
    """Function of is_image [1, L]: the argument by which transformers 5 knows where the picture is; 4 has none."""
    known = inspect.signature(text_encoder.model.model.get_rope_index).parameters

    def arguments(is_image):
        return {"mm_token_type_ids": is_image.int()} if "mm_token_type_ids" in known else {}

    return arguments
