"""Parts of a model: loaded in the right precision, usable for training, and really gone afterwards."""

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.events import NoCallbacks, StageProgress
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.components import open_text_encoder, open_vae
from comfyui_longcat.training.weights.spec import LoraUse, ModelSpec
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
OPENERS = {"vae": open_vae, "text_encoder": open_text_encoder, "transformer": open_transformer}


def spec(folder: Path, precision="fp32", text_precision="no_change", loras=()) -> ModelSpec:
    config = ModelConfig(
        model_flavour="tiny-edit", base_model_precision=precision, text_encoder_1_precision=text_precision
    )
    return ModelSpec(config=config, models_dirs=(), folder=folder, loras=loras)


def module(part):
    return getattr(part, "model", part)


def run_transformer(transformer):
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(12, 3)
    ids[:, 2] = torch.arange(12)
    dtype = transformer.dtype
    return transformer(
        hidden_states=torch.randn(1, 8, 64, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(1, 4, 64, generator=generator).to(dtype),
        timestep=torch.tensor([0.5]),
        img_ids=ids[4:],
        txt_ids=ids[:4],
        return_dict=False,
    )[0].float()


@pytest.mark.parametrize(
    ("precision", "transformer_dtype", "text_dtype"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("int8-quanto", torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision_of_each_part(tiny_checkpoint, precision, transformer_dtype, text_dtype):
    wanted = {"vae": torch.float32, "text_encoder": text_dtype, "transformer": transformer_dtype}
    for name, open_part in OPENERS.items():
        with open_part(spec(tiny_checkpoint, precision), CPU, NoCallbacks()) as part:
            assert module(part).dtype == wanted[name], name
            floats = {p.dtype for p in module(part).parameters() if p.is_floating_point()}
            assert floats == {wanted[name]}, name


@pytest.mark.parametrize("name", OPENERS)
def test_parts_are_frozen_but_fit_for_training_inside_inference_mode(tiny_checkpoint, name):
    with torch.inference_mode(), OPENERS[name](spec(tiny_checkpoint), CPU, NoCallbacks()) as part:
        model = module(part)
        assert not model.training
        tensors = [*model.parameters(), *model.buffers()]
        assert tensors and not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors)


def test_gradients_reach_the_input_through_a_frozen_transformer(tiny_checkpoint):
    with torch.inference_mode(), open_transformer(spec(tiny_checkpoint), CPU, NoCallbacks()) as transformer:
        with torch.inference_mode(False), torch.enable_grad():
            transformer.proj_out.weight.requires_grad_(True)
            run_transformer(transformer).square().mean().backward()
            assert transformer.proj_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("precision", ["fp32", "int8-quanto"])
@pytest.mark.parametrize("name", OPENERS)
def test_everything_dies_with_the_block(tiny_checkpoint, name, precision):
    settings = spec(tiny_checkpoint, precision, "int8-quanto" if precision == "int8-quanto" else "no_change")
    with OPENERS[name](settings, CPU, NoCallbacks()) as part:
        model = module(part)
        weights = [weakref.ref(parameter) for parameter in model.parameters()]
        whole = weakref.ref(model)
        del model
    assert [ref for ref in weights if ref() is not None] == []
    del part
    gc.collect()
    assert whole() is None


@pytest.mark.parametrize("name", OPENERS)
def test_everything_dies_after_an_error_whose_traceback_is_kept(tiny_checkpoint, name):
    weights = []

    def work():
        with OPENERS[name](spec(tiny_checkpoint), CPU, NoCallbacks()) as part:
            weights.extend(weakref.ref(parameter) for parameter in module(part).parameters())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle") as caught:
        work()
    assert caught.tb is not None
    assert weights and [ref for ref in weights if ref() is not None] == []


def test_text_encoder_comes_with_tokenizer_and_a_processor_for_pil_pictures(tiny_checkpoint):
    from PIL import Image

    with open_text_encoder(spec(tiny_checkpoint), CPU, NoCallbacks()) as text_encoder:
        assert text_encoder.tokenizer("a")["input_ids"]
        batch = text_encoder.image_processor(images=[Image.new("RGB", (112, 56))], return_tensors="pt")
        assert batch["image_grid_thw"].tolist() == [[1, 4, 8]]
        assert "Fast" not in type(text_encoder.image_processor).__name__
    assert text_encoder.model is None


def test_int8_text_encoder_keeps_its_eyes_whole(tiny_checkpoint):
    from optimum.quanto import QLinear

    with open_text_encoder(spec(tiny_checkpoint, "bf16", "int8-quanto"), CPU, NoCallbacks()) as text_encoder:
        names = {name for name, part in text_encoder.model.named_modules() if isinstance(part, QLinear)}
    assert names and all(name.startswith("model.language_model.layers.") for name in names)


def test_loras_of_the_handle_act_with_their_strength(tiny_checkpoint, tmp_path):
    path = tmp_path / "lora.safetensors"
    generator = torch.Generator().manual_seed(0)
    key = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{key}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"{key}.lora_B.weight": torch.randn(64, 4, generator=generator),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    outputs = []
    for loras in ((), (LoraUse(path=path),), (LoraUse(path=path, strength=0.0),)):
        with torch.no_grad(), open_transformer(spec(tiny_checkpoint, loras=loras), CPU, NoCallbacks()) as model:
            assert not any(parameter.requires_grad for parameter in model.parameters())
            outputs.append(run_transformer(model))
    without, with_lora, at_zero = outputs
    assert (with_lora - without).abs().max() > 1e-4
    assert torch.equal(at_zero, without)


def test_loading_is_reported(tiny_checkpoint, capfd):
    class Listener(NoCallbacks):
        def __init__(self):
            self.events = []

        def on_event(self, event):
            self.events.append(event)

    listener = Listener()
    with open_vae(spec(tiny_checkpoint), CPU, listener):
        pass
    assert [(event.stage, event.done) for event in listener.events if isinstance(event, StageProgress)] == [
        ("loading the VAE", 0),
        ("loading the VAE", 1),
    ]
    assert "%|" not in capfd.readouterr().err


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_with_noise(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor.clone() for name, tensor in tensors.items() if name != "proj_out.weight"}, path)
    with pytest.raises(ModelError, match="proj_out.weight"), open_transformer(spec(folder), CPU, NoCallbacks()):
        pass


def test_weights_of_another_width_are_refused(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({**tensors, "proj_out.weight": torch.zeros(32, 64)}, path)
    with pytest.raises(ModelError, match="transformer"), open_transformer(spec(folder), CPU, NoCallbacks()):
        pass


def test_truncated_weights_are_refused_before_loading(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"text_encoder.model\.safetensors is damaged"):
        with open_vae(spec(folder), CPU, NoCallbacks()):
            pass
