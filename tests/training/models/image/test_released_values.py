"""Values of the released models that no tensor holds, written out here a second time from the released files.

Sources: config.json and preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct, whose text encoder LongCat-Image uses;
longcat_image/utils/model_utils.py of meituan-longcat/LongCat-Image; ae.safetensors' values of Flux.1.
"""

import numpy as np
import pytest
import torch
from comfyui_longcat.training.models import flow
from comfyui_longcat.training.models.image import latents, prompt
from comfyui_longcat.training.settings import geometry
from comfyui_longcat.training.weights import qwen_file, vae_file
from PIL import Image

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Sides of released tensors; the numbers of layers follow from the names.
RELEASED_SHAPES = {
    "model.embed_tokens.weight": (152064, 3584),
    "model.layers.0.self_attn.q_proj.weight": (3584, 3584),
    "model.layers.0.self_attn.k_proj.weight": (512, 3584),
    "model.layers.0.self_attn.k_proj.bias": (512,),
    "model.layers.0.mlp.gate_proj.weight": (18944, 3584),
    "model.layers.27.input_layernorm.weight": (3584,),
    "visual.blocks.0.attn.proj.weight": (1280, 1280),
    "visual.blocks.0.mlp.gate_proj.weight": (3420, 1280),
    "visual.blocks.31.norm1.weight": (1280,),
    "visual.merger.mlp.2.weight": (3584, 5120),
    "lm_head.weight": (152064, 3584),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    from transformers import Qwen2_5_VLConfig

    path = tmp_path_factory.mktemp("file") / "qwen_2.5_vl_7b.safetensors"
    names = qwen_file.text_encoder_names(RELEASED_SHAPES)
    return Qwen2_5_VLConfig(**qwen_file.text_encoder_config(names, RELEASED_SHAPES, path))


def test_the_text_encoder_that_a_single_file_gives_is_the_released_one(config):
    text, vision = config.text_config, config.vision_config
    wanted = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "hidden_act": "silu",
        "use_sliding_window": False,
    }
    assert {name: getattr(text, name) for name in wanted} == wanted
    # transformers 5 keeps the settings of the rotation in one place, 4 in two.
    rope = getattr(text, "rope_parameters", None) or {**text.rope_scaling, "rope_theta": text.rope_theta}
    assert (rope["rope_theta"], list(rope["mrope_section"])) == (1_000_000, [16, 24, 24])
    wanted = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "in_channels": 3,
    }
    assert {name: getattr(vision, name) for name in wanted} == wanted
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    assert [getattr(config, name) for name in tokens] == [151655, 151656, 151652, 151653]
    assert not config.tie_word_embeddings


def test_the_image_processor_has_the_released_settings():
    processor = qwen_file.image_processor()
    wanted = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "resample": 3,
    }
    assert {name: getattr(processor, name) for name in wanted} == wanted
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (MEAN, DEVIATION)
    assert processor.rescale_factor == pytest.approx(1 / 255)
    # 4 and 16384 tokens of 28 x 28 px; transformers 4 has them twice.
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (3136, 12845056)


@pytest.mark.parametrize(
    ("size", "grid"),
    # Of half the picture: 1024x1024, 1376x768; and one that lies below the least area.
    [((512, 512), (36, 36)), ((688, 384), (28, 50)), ((30, 30), (4, 4))],
)
def test_the_image_processor_makes_the_released_patches(size, grid):
    made = qwen_file.image_processor()(images=[Image.new("RGB", size, (255, 128, 0))], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, *grid]]
    assert made["pixel_values"].shape == (grid[0] * grid[1], 3 * 2 * 14 * 14)
    levels = [(level / 255 - mean) / std for level, mean, std in zip((255, 128, 0), MEAN, DEVIATION, strict=True)]
    found = np.asarray(made["pixel_values"][0]).reshape(3, -1)
    np.testing.assert_allclose(found, np.repeat(np.array(levels)[:, None], found.shape[1], 1), atol=1e-5)


def test_the_templates_are_the_released_ones_to_the_letter():
    assert prompt.TEXT_PREFIX == (
        "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image"
        " content, suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
    )
    assert prompt.EDIT_PREFIX == (
        "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input"
        " image(s). Then, based on the user's editing instructions, clearly and precisely determine how to modify the"
        " given image(s), ensuring that only the specified parts are altered and all other aspects remain consistent"
        " with the original(s).<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    )
    assert prompt.SUFFIX == "<|im_end|>\n<|im_start|>assistant\n"
    assert geometry.PROMPT_SLOTS == 512


def test_the_latent_spaces_and_schedules_are_the_released_ones():
    assert (vae_file.SCALING_FACTOR, vae_file.SHIFT_FACTOR, vae_file.LATENT_CHANNELS) == (0.3611, 0.1159, 16)
    assert (flow.BASE_TOKENS, flow.MAX_TOKENS, flow.BASE_MU, flow.MAX_MU) == (256, 4096, 0.5, 1.15)
    assert (flow.VIDEO_SHIFT, flow.SMALLEST_VIDEO_SIGMA) == (12.0, 0.001)
    assert (flow.DISTILLED_GRID, flow.DISTILLED_STEPS) == (50, 16)
    assert (geometry.FRAME_RATE, geometry.FRAME_STEP, geometry.PATCH) == (15, 4, 2)
    # Kinds of tokens: a text, the picture that is drawn, the one that is given.
    assert torch.equal(latents.image_position_ids(latents.REFERENCE, 2, 2, 5), torch.tensor([[2.0, 5.0, 5.0]]))
    assert torch.equal(latents.image_position_ids(latents.TARGET, 2, 2, 5), torch.tensor([[1.0, 5.0, 5.0]]))
    assert torch.equal(latents.text_position_ids(2), torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
