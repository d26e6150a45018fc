"""Which layers of the video transformer stay in full precision, through the loading of a quantised model."""

import pytest
import torch
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.spec import ModelSpec
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# By the released transformer's own names; the embedding of patches is a convolution, which is never quantised.
WHOLE = {
    *("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.y_proj.0", "y_embedder.y_proj.2"),
    *("final_layer.adaLN_modulation.1", "final_layer.linear"),
}
WHOLE_IN_BLOCKS = {"adaLN_modulation.1"}
QUANTISED_IN_BLOCKS = {
    *("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"),
    *("ffn.w1", "ffn.w2", "ffn.w3"),
}


@pytest.mark.parametrize("settings", [{}, {"blocks_to_swap": 2}])
@pytest.mark.parametrize("precision", ["int8-quanto", "int8-torchao"])
def test_all_linears_of_the_blocks_but_the_modulation_are_quantised(precision, settings, tmp_path):
    pytest.importorskip({"int8-quanto": "optimum.quanto", "int8-torchao": "torchao"}[precision])
    config = ModelConfig(
        model_family="longcat_video", model_flavour="tiny-video", base_model_precision=precision, **settings
    )
    spec = ModelSpec(config=config, models_dirs=(tmp_path,))
    with open_transformer(spec, torch.device("cpu"), NoCallbacks(), training=True) as transformer:
        linears = {name: part for name, part in transformer.named_modules() if isinstance(part, torch.nn.Linear)}
        quantised = {name for name, part in linears.items() if is_traceable_wrapper_subclass(part.weight)}
        blocks = len(transformer.blocks)
        convolution = transformer.x_embedder.proj.weight
        assert type(convolution.data) is torch.Tensor and convolution.dtype == torch.bfloat16

    def in_blocks(names):
        return {f"blocks.{number}.{name}" for number in range(blocks) for name in names}

    assert quantised == in_blocks(QUANTISED_IN_BLOCKS)
    assert linears.keys() - quantised == WHOLE | in_blocks(WHOLE_IN_BLOCKS)
