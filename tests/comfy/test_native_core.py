"""Our single files in ComfyUI's own loaders, and its files in ours; core's code runs with core's Python."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.image.prompt import EDIT_PREFIX, SUFFIX
from comfyui_longcat.training.weights import single_file
from comfyui_longcat.training.weights.tensor_file import read_tensor_file
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.comfy

HEADER = """
import json, logging, sys
sys.path.insert(0, ".")
from comfy.cli_args import args
args.cpu = True
import torch
torch.set_num_threads(2)
from safetensors.torch import load_file, save_file
folder = sys.argv[1]
"""

TRANSFORMER = (
    HEADER
    + """
warnings = []
class Collector(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())
logging.getLogger().addHandler(Collector(logging.INFO))
logging.getLogger().setLevel(logging.INFO)
import comfy.sd
del warnings[:]
patcher = comfy.sd.load_diffusion_model_state_dict(load_file(folder + "/model.safetensors"), {"dtype": torch.float32})
said = [text for text in warnings if "missing" in text or "unexpected" in text or "left over" in text]
inputs = load_file(folder + "/inputs.safetensors")
length = float(inputs["prompt_embeds"].shape[1])
rope = {"shift_t": 1.0, "shift_y": length, "shift_x": length}
with torch.no_grad():
    outputs = {
        name: patcher.model.diffusion_model(
            inputs["latents"], inputs["sigmas"], inputs["prompt_embeds"], ref_latents=references,
            ref_latents_method="index", transformer_options={"rope_options": rope},
        ).contiguous()
        for name, references in (("text to image", None), ("edit", [inputs["reference"]]))
    }
save_file(outputs, folder + "/core.safetensors")
print(json.dumps({"model": type(patcher.model).__name__, "said": said}))
"""
)

VAE = (
    HEADER
    + """
from comfy.ldm.models.autoencoder import AutoencodingEngine
sizes = dict(double_z=True, z_channels=16, resolution=256, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 2, 2, 2],
             num_res_blocks=2, attn_resolutions=[], dropout=0.0)
parts = "comfy.ldm.modules.diffusionmodules.model."
torch.manual_seed(0)
vae = AutoencodingEngine(
    regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer",
                        "params": {"sample": False}},
    encoder_config={"target": parts + "Encoder", "params": sizes},
    decoder_config={"target": parts + "Decoder", "params": sizes},
)
for weight in vae.parameters():
    torch.nn.init.normal_(weight, std=0.05)
pixels = load_file(folder + "/pixels.safetensors")["pixels"]
with torch.no_grad():
    latents = vae.encode(pixels)
    decoded = vae.decode(latents)
save_file({"latents": latents.contiguous(), "pixels": decoded.contiguous()}, folder + "/core.safetensors")
save_file({name: tensor.contiguous() for name, tensor in vae.state_dict().items()}, folder + "/ae.safetensors")
print(json.dumps(len(vae.state_dict())))
"""
)

FP8 = (
    HEADER
    + """
import comfy.ops, comfy.utils
found = {}
for name in ("older", "newer"):
    tensors = load_file(folder + "/" + name + ".safetensors")
    tensors, _ = comfy.utils.convert_old_quants(tensors, "", metadata={})
    operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    linear = operations.Linear(24, 16, bias=False, dtype=torch.float32)
    linear.load_state_dict({key.removeprefix("layer."): value for key, value in tensors.items() if "layer" in key})
    found[name] = linear.weight.dequantize()
save_file(found, folder + "/core.safetensors")
print(json.dumps(sorted(found)))
"""
)


def run_core(comfy, script: str, folder: Path):
    done = subprocess.run(
        [comfy.python, "-c", script, str(folder)], cwd=comfy.path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def transformer():
    """The twin that core's detection accepts: joint width 3584, heads of 128."""
    from diffusers import LongCatImageTransformer2DModel

    model = LongCatImageTransformer2DModel(num_layers=2, num_single_layers=3, num_attention_heads=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm_" in name and weight.ndim == 1 else 0.0, 0.05, generator=generator)
    return model


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def test_core_loads_and_computes_what_we_export(comfy, transformer, tmp_path):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 8, 12, generator=generator)
    reference = torch.randn(1, 16, 8, 12, generator=generator)
    prompt_embeds = torch.randn(1, 20, 3584, generator=generator)
    sigmas = torch.tensor([0.6])
    single_file.export_transformer(transformer, tmp_path / "model.safetensors")
    inputs = {"latents": latents, "reference": reference, "prompt_embeds": prompt_embeds, "sigmas": sigmas}
    save_file(inputs, tmp_path / "inputs.safetensors")

    told = run_core(comfy, TRANSFORMER, tmp_path)
    assert told == {"model": "LongCatImage", "said": []}

    core = load_file(tmp_path / "core.safetensors")
    loaded = single_file.load_transformer(tmp_path / "model.safetensors", torch.float32)
    family = LongCatImageFamily()
    with torch.no_grad():
        for name, references in (("text to image", []), ("edit", [reference])):
            model_inputs = family.prepare_inputs(latents.shape, prompt_embeds, references)
            ours = family.predict(loaded, latents, sigmas, model_inputs)
            difference = relative(ours, core[name])
            print(f"{name}: ours against core's, relative difference {difference:.1e}")
            assert core[name].std() > 0.01
            assert difference < 1e-5


def test_we_load_and_compute_what_core_saves_as_vae(comfy, tmp_path):
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    tensors = run_core(comfy, VAE, tmp_path)

    file = single_file.inspect(tmp_path / "ae.safetensors")
    assert (file.kind, file.layout, file.config["block_out_channels"]) == ("vae", "original", [32, 64, 64, 64])
    vae = single_file.load_vae(tmp_path / "ae.safetensors")
    assert len(vae.state_dict()) == tensors
    core = load_file(tmp_path / "core.safetensors")
    with torch.no_grad():
        differences = (
            relative(vae.encode(pixels).latent_dist.mode(), core["latents"]),
            relative(vae.decode(core["latents"]).sample, core["pixels"]),
        )
    print(f"VAE against core's, relative difference of latents and pixels: {differences}")
    assert core["latents"].std() > 0.01
    assert core["pixels"].std() > 0.01
    assert max(differences) < 1e-5


def test_fp8_weights_mean_what_they_mean_to_core(comfy, tmp_path):
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(3))
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    marker = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    older = {"layer.weight": stored, "layer.scale_weight": scale, "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    newer = {"layer.weight": stored, "layer.weight_scale": scale, "layer.comfy_quant": marker}
    save_file(older, tmp_path / "older.safetensors")
    save_file(newer, tmp_path / "newer.safetensors")
    run_core(comfy, FP8, tmp_path)
    core = load_file(tmp_path / "core.safetensors")
    for name in ("older", "newer"):
        with read_tensor_file(tmp_path / f"{name}.safetensors").reading() as read:
            assert torch.equal(read("layer.weight"), core[name])
        print(f"{name} fp8: relative error of the numbers {relative(core[name], weight):.3f}")
        assert relative(core[name], weight) < 0.05


def test_cores_tokenizer_is_found_and_counts_the_template(comfy):
    from transformers import AutoTokenizer

    folder = single_file.find_tokenizer([comfy.path, comfy.path / single_file.TOKENIZER_IN_COMFYUI])
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in (EDIT_PREFIX, SUFFIX)]
    assert counts == [70, 5]  # longcat-image.md, section 2.1
    assert tokenizer.pad_token_id == 151643
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151655
