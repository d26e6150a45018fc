"""LoRA files: what is written comes back, equal runs give equal files, and foreign files are refused with reasons."""

import json
import struct

import pytest
import safetensors.torch
import torch
from comfyui_longcat.training.errors import ConfigError, LoraFileError, NonFiniteError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.lora.convert import convert_lora
from comfyui_longcat.training.lora.file import apply_lora, check_lora, read_lora, read_metadata, save_lora
from comfyui_longcat.training.lora.inject import TRAINED_ADAPTER, inject_lora, lora_layers
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.spec import LoraUse, ModelSpec
from diffusers import LongCatImageTransformer2DModel
from safetensors.torch import load_file, save_file

TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "to_out.0"]


def make_transformer(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = LongCatImageTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 6, 6],
        )
    return transformer.to(dtype).requires_grad_(False).eval()


def make_trained(alpha=0.0, dtype=torch.float32, seed=1):
    transformer = make_transformer(dtype)
    parameters = inject_lora(transformer, TARGETS, rank=4, alpha=alpha, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return transformer


def predict(transformer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 4, 64, generator=generator).to(transformer.dtype),
            encoder_hidden_states=torch.randn(1, 3, 32, generator=generator).to(transformer.dtype),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(3, 3),
        ).sample.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_applied_file_acts_like_the_trained_adapter(tmp_path, alpha, dtype):
    trained = make_trained(alpha, dtype)
    save_lora(tmp_path / "a.safetensors", trained, {})
    plain = make_transformer(dtype)
    untouched = predict(plain)
    apply_lora(plain, tmp_path / "a.safetensors", 1.0, "first")
    difference = (predict(plain) - predict(trained)).abs().max().item()
    effect = (predict(plain) - untouched).abs().max().item()
    print(f"alpha {alpha}, {dtype}: difference {difference:.2e}, effect of the LoRA {effect:.2e}")
    # With alpha = rank nothing is multiplied; else the scale acts before instead of after a product.
    assert difference <= (0.0 if alpha == 0 else (1e-5 if dtype == torch.float32 else effect / 5))
    assert effect > 0.05
    assert not any(parameter.requires_grad for parameter in plain.parameters())


def test_keys_have_no_alpha_and_diffusers_names(tmp_path):
    save_lora(tmp_path / "a.safetensors", make_trained(3.0), {})
    keys = load_file(tmp_path / "a.safetensors").keys()
    assert len(keys) == 20
    assert "transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight" in keys
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)


def test_diffusers_own_loader_gives_the_same_result(tmp_path):
    trained = make_trained(3.0)
    save_lora(tmp_path / "a.safetensors", trained, {})
    plain = make_transformer()
    plain.load_lora_adapter(load_file(tmp_path / "a.safetensors"), prefix="transformer")
    difference = (predict(plain) - predict(trained)).abs().max().item()
    print(f"against diffusers' loader: {difference:.2e}")
    assert difference < 1e-5


def test_equal_adapters_give_equal_files(tmp_path):
    metadata = {name: name * 3 for name in "abcdefgh"}
    for name in ("a", "b"):
        save_lora(tmp_path / name, make_trained(), metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_metadata(tmp_path / "a") == metadata


def test_strength_and_several_loras_add_up(tmp_path):
    for seed, name in enumerate(("a", "b"), start=1):
        save_lora(tmp_path / name, make_trained(seed=seed), {})
    both = make_transformer()
    apply_lora(both, tmp_path / "a", 1.0, "a")
    apply_lora(both, tmp_path / "b", -0.5, "b")
    layer = lora_layers(both)["transformer_blocks.0.attn.to_q"]
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    name = "transformer_blocks.0.attn.to_q"
    expected = layer.base_layer(x)
    for path, strength in ((tmp_path / "a", 1.0), (tmp_path / "b", -0.5)):
        pair = read_lora(path)[name]
        expected = expected + strength * (x @ pair.a.T @ pair.b.T)
    torch.testing.assert_close(layer(x), expected)


def test_strength_zero_changes_nothing(tmp_path):
    save_lora(tmp_path / "a", make_trained(), {})
    plain = make_transformer()
    before = predict(plain)
    apply_lora(plain, tmp_path / "a", 0.0, "a")
    assert torch.equal(predict(plain), before)


def test_training_on_top_of_an_applied_lora_keeps_it_frozen_and_acting(tmp_path):
    save_lora(tmp_path / "a", make_trained(), {})
    model = make_transformer()
    apply_lora(model, tmp_path / "a", 1.0, "lora_1")
    before = predict(model)
    parameters = inject_lora(model, TARGETS, rank=2, alpha=0, seed=5)
    assert torch.equal(predict(model), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(parameters)
    assert all(TRAINED_ADAPTER in name for name in trainable)
    save_lora(tmp_path / "b", model, {})
    assert {pair.a.shape[0] for pair in read_lora(tmp_path / "b").values()} == {2}


def test_ranks_may_differ_and_alpha_keys_and_bare_names_are_read(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, rank in (("transformer_blocks.0.attn.to_q", 2), ("single_transformer_blocks.1.attn.to_k", 5)):
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 32, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(32, rank, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "a")
    model = make_transformer()
    apply_lora(model, tmp_path / "a", 2.0, "a")
    layers = lora_layers(model, "a")
    assert {name: layer.r["a"] for name, layer in layers.items()} == {
        "transformer_blocks.0.attn.to_q": 2,
        "single_transformer_blocks.1.attn.to_k": 5,
    }
    x = torch.randn(3, 32, generator=generator)
    for name, layer in layers.items():
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 2.0 * (x @ a.T @ b.T) / a.shape[0])


def test_works_on_an_int8_base(tmp_path):
    quanto = pytest.importorskip("optimum.quanto")
    save_lora(tmp_path / "a", make_trained(dtype=torch.bfloat16), {})
    model = make_transformer(torch.bfloat16)
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    before = predict(model)
    apply_lora(model, tmp_path / "a", 1.0, "a")
    with_lora = predict(make_trained(dtype=torch.bfloat16))
    difference = (predict(model) - with_lora).abs().mean() / with_lora.abs().mean()
    print(f"int8 base with LoRA against bf16 base with LoRA: {difference:.3f} relative")
    assert difference < 0.05
    assert not torch.equal(predict(model), before)


def foreign(tmp_path, keys):
    save_file({key: torch.zeros(4, 4) for key in keys}, tmp_path / "foreign.safetensors")
    return tmp_path / "foreign.safetensors"


def test_names_examples_of_both_sides_when_a_module_matches_nothing(tmp_path):
    module = "transformer.blocks.7.attn.qkv"
    path = foreign(tmp_path, [f"{module}.lora_A.weight", f"{module}.lora_B.weight"])
    with pytest.raises(LoraFileError, match=r"In the file: blocks\.7\.attn\.qkv; in the model: .*transformer_blocks"):
        apply_lora(make_transformer(), path, 1.0, "a")


def test_refuses_another_width(tmp_path):
    module = "transformer.transformer_blocks.0.attn.to_q"
    path = foreign(tmp_path, [f"{module}.lora_A.weight", f"{module}.lora_B.weight"])
    with pytest.raises(LoraFileError, match="4 -> 4 there and 32 -> 32 in the model"):
        apply_lora(make_transformer(), path, 1.0, "a")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["lora_unet_x.lora_down.weight"],
            r"not read here\. In the file: lora_unet_x.*expected.*transformer_blocks\.0",
        ),
        (["transformer.x.lora_A.weight"], r"no complete LoRA: transformer\.x"),
        ([], "no complete LoRA"),
    ],
)
def test_refuses_other_layouts(tmp_path, keys, message):
    with pytest.raises(LoraFileError, match=message):
        read_lora(foreign(tmp_path, keys))


def test_refuses_missing_and_truncated_files(tmp_path):
    with pytest.raises(LoraFileError, match=r"none\.safetensors is missing or cannot be read"):
        read_lora(tmp_path / "none.safetensors")
    save_lora(tmp_path / "a", make_trained(), {})
    (tmp_path / "cut").write_bytes((tmp_path / "a").read_bytes()[:-100])
    with pytest.raises(LoraFileError, match="cut is damaged: it has"):
        read_lora(tmp_path / "cut")


def test_check_notices_a_single_changed_bit(tmp_path):
    trained = make_trained()
    path = tmp_path / "a"
    save_lora(path, trained, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match="other weights than the model has, in 1 of 10"):
        check_lora(path, trained)


def test_metadata_of_other_programs_is_empty(tmp_path):
    assert read_metadata(foreign(tmp_path, ["transformer.x.lora_A.weight"])) == {}


def test_file_begins_with_a_readable_header(tmp_path):
    save_lora(tmp_path / "a", make_trained(), {"lora_rank": "4"})
    content = (tmp_path / "a").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert json.loads(header["__metadata__"]["longcat"]) == {"lora_rank": "4"}


NUMBERS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
WIDE = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "single_transformer_blocks.1.attn.to_v"


def faulty_file(path, value=None, part="lora_B.weight", dtype=torch.float32, faulty=1):
    """A LoRA of three modules; the first `faulty` of them have one number of `part` replaced by `value`."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, name in enumerate(WIDE):
        made = {
            "lora_A.weight": torch.randn(2, 32, generator=generator),
            "lora_B.weight": torch.randn(32, 2, generator=generator),
            "alpha": torch.tensor(1.0),
        }
        if value is not None and number < faulty:
            made[part].view(-1)[-1] = value
        tensors |= {f"transformer.{name}.{end}": tensor.to(dtype) for end, tensor in made.items()}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight", "alpha"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (dtype, value)
        for dtype in NUMBERS
        for value in (float("nan"), float("inf"), float("-inf"))
        # That format has no infinity.
        if dtype != "F8_E4M3" or value != value
    ],
)
def test_numbers_that_are_none_are_refused_in_every_format(tmp_path, dtype, value, part):
    path = faulty_file(tmp_path / "a.safetensors", value, part, NUMBERS[dtype], faulty=2)
    message = r"a\.safetensors holds NaN or infinity in 2 of 3 modules: .*transformer_blocks\.0\.attn\.to_k"
    with pytest.raises(LoraFileError, match=message):
        read_lora(path)
    for layout in ("portable", "peft", "kohya"):
        with pytest.raises(LoraFileError, match=message):
            convert_lora(path, layout, tmp_path / "b")
    with pytest.raises(LoraFileError, match=message):
        apply_lora(make_transformer(), path, 1.0, "a")
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", NUMBERS)
def test_a_sound_lora_is_read_in_every_format(tmp_path, dtype):
    found = read_lora(faulty_file(tmp_path / "a", dtype=NUMBERS[dtype]))
    wanted = read_lora(faulty_file(tmp_path / "b"))
    tolerance = {"F8_E4M3": 0.1, "F8_E5M2": 0.2}.get(dtype, 0.01)
    for name in WIDE:
        torch.testing.assert_close(found[name].b, wanted[name].b, rtol=tolerance, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.complex64])
def test_what_is_no_floating_number_is_refused(tmp_path, dtype):
    if dtype not in safetensors.torch._SIZE:
        pytest.skip(f"this version of safetensors cannot write {dtype}")
    path = faulty_file(tmp_path / "a.safetensors", dtype=dtype)
    with pytest.raises(LoraFileError, match=r"a\.safetensors holds \w+ in 9 of 9 tensors"):
        read_lora(path)


def test_nothing_is_loaded_for_a_lora_that_is_refused(tmp_path):
    """The twin would be written into its folder if the model were asked for."""
    path = faulty_file(tmp_path / "a.safetensors", float("nan"))
    spec = ModelSpec(
        config=ModelConfig(model_flavour="tiny"), models_dirs=(tmp_path / "models",), loras=(LoraUse(path=path),)
    )
    with pytest.raises(LoraFileError, match="NaN or infinity in 1 of 3"):
        with open_transformer(spec, torch.device("cpu"), NoCallbacks()):
            pass
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(tmp_path, strength):
    with pytest.raises(ConfigError, match=r"strength .Load LongCat LoRA. is (nan|inf)"):
        LoraUse(path=tmp_path, strength=strength)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_not_saved(tmp_path, value):
    trained = make_trained()
    save_lora(tmp_path / "a", trained, {})
    before = (tmp_path / "a").read_bytes()
    with torch.no_grad():
        lora_layers(trained)["transformer_blocks.0.attn.to_q"].lora_A[TRAINED_ADAPTER].weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in 1 of 10 modules: transformer_blocks\.0\.attn\.to_q"):
        save_lora(tmp_path / "a", trained, {})
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "name", ["transformer_blocks.0.attn.to_.", "transformer_blocks.0.attn.to_(q|k)", "(a+)+$", ".*"]
)
def test_a_modules_name_is_never_a_pattern(tmp_path, name):
    with pytest.raises(LoraFileError, match=r"1 of 1 modules of .*foreign\.safetensors match nothing in the model"):
        apply_lora(make_transformer(), foreign(tmp_path, [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]), 1.0, "a")


def test_a_very_long_name_is_cut_in_messages(tmp_path):
    name = "blocks." * 100_000 + "x"
    path = foreign(tmp_path, [f"{name}.lora_A.weight", f"{name}.lora_B.weight"])
    with pytest.raises(LoraFileError) as raised:
        apply_lora(make_transformer(), path, 1.0, "a")
    assert len(str(raised.value)) < 1_000
