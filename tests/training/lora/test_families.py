"""Names of modules: whatever programs put around them, the tensors are those of the plain file, bit for bit."""

import json
import random

import pytest
import torch
from comfyui_longcat.training.errors import LoraFileError
from comfyui_longcat.training.lora.convert import convert_lora
from comfyui_longcat.training.lora.families import FAMILIES, IMAGE, VIDEO, WRAPPERS, find_layer
from comfyui_longcat.training.lora.file import read_lora
from safetensors.torch import load_file, save_file

IMAGE_MODULES = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.12.proj_mlp", "x_embedder")
VIDEO_MODULES = ("blocks.0.attn.qkv", "blocks.31.cross_attn.kv_linear", "t_embedder.mlp.0")
MODULES = {IMAGE.title: IMAGE_MODULES, VIDEO.title: VIDEO_MODULES}
ENDS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_A.my-adapter_1.weight", "lora_B.my-adapter_1.weight"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)


def tensors_of(modules, spell=lambda name: name, ends=ENDS[0]):
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in modules:
        made[f"{spell(name)}.{ends[0]}"] = torch.randn(2, 8, generator=generator)
        made[f"{spell(name)}.{ends[1]}"] = torch.randn(24, 2, generator=generator)
    return made


def write(path, tensors, config=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    # peft's names say nothing of the scale.
    if config is None and any("base_model" in key for key in tensors):
        config = {"r": 2, "lora_alpha": 2}
    if config is not None:
        (path.parent / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name].a, pair.a) and torch.equal(found[name].b, pair.b) for name, pair in wanted.items()
    )


def assert_plain(path, tmp_path, modules):
    """Read like the plain file, and written like it: so it fits the model that the plain one fits."""
    plain = write(tmp_path / "plain.safetensors", tensors_of(modules))
    assert_same(read_lora(path), read_lora(plain))
    found, wanted = (
        load_file(convert_lora(each, "portable", tmp_path / name)) for each, name in ((path, "a"), (plain, "b"))
    )
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("modules", MODULES.values(), ids=MODULES)
def test_every_end_of_a_key_is_read(tmp_path, modules, ends):
    path = write(
        tmp_path / "other" / "adapter.safetensors", tensors_of(modules, lambda name: f"transformer.{name}", ends)
    )
    assert_plain(path, tmp_path, modules)


@pytest.mark.parametrize("seed", range(40))
def test_wrappers_are_taken_off_in_any_number_and_order(tmp_path, seed):
    """Also where PyTorch has compiled or wrapped single blocks."""
    draw = random.Random(seed)
    modules = MODULES[draw.choice(list(MODULES))]
    before = ".".join(draw.choices(WRAPPERS, k=1 + seed % 4))
    inside = draw.choice(["", "_orig_mod", "_fsdp_wrapped_module._checkpoint_wrapped_module", "module"])

    def spell(name):
        block, number, rest = name.partition(".")[0], *name.partition(".")[2].partition(".")[::2]
        inner = f"{block}.{number}.{inside}.{rest}" if inside and number.isdigit() else name
        return f"{before}.{inner}"

    path = write(tmp_path / "other" / "adapter.safetensors", tensors_of(modules, spell, draw.choice(ENDS)))
    assert_plain(path, tmp_path, modules)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lycoris_", ""])
@pytest.mark.parametrize("before", ["", "_orig_mod_", "transformer_", "transformer__orig_mod_", "module__orig_mod_"])
def test_names_without_dots_are_unwrapped_too(tmp_path, prefix, before):
    """A compiled model's names, as kohya's scripts flatten them."""

    def spell(name):
        return prefix + before + name.replace(".", "_").replace("blocks_0_", "blocks_0__orig_mod_")

    path = write(tmp_path / "other" / "a.safetensors", tensors_of(IMAGE_MODULES, spell, ENDS[3]))
    assert_plain(path, tmp_path, IMAGE_MODULES)


def test_no_linear_has_a_wrappers_name():
    for family in FAMILIES:
        names = [names for kind in (family.top, *family.rows) for names in kind]
        parts = {part for schemes in names for scheme in schemes for name in scheme for part in name.split(".")}
        lists = {part for lists in family.lists for name in lists for part in name.split(".")}
        assert parts and not (parts | lists) & set(WRAPPERS)


def test_several_adapters_in_a_file_are_refused(tmp_path):
    tensors = tensors_of(IMAGE_MODULES, ends=ENDS[1]) | tensors_of(IMAGE_MODULES, ends=ENDS[2])
    with pytest.raises(LoraFileError, match=r"a\.safetensors holds several LoRAs, called default, my-adapter_1"):
        read_lora(write(tmp_path / "a.safetensors", tensors))


def test_one_module_under_two_names_is_refused(tmp_path):
    tensors = tensors_of(IMAGE_MODULES) | tensors_of(IMAGE_MODULES[:1], lambda name: f"_orig_mod.{name}")
    with pytest.raises(LoraFileError, match=r"holds transformer_blocks\.0\.attn\.to_q twice"):
        read_lora(write(tmp_path / "a.safetensors", tensors))
    foreign = ("blocks.0.foo", "_orig_mod.blocks.0.foo")
    with pytest.raises(LoraFileError, match="one module under two names"):
        read_lora(write(tmp_path / "b.safetensors", tensors_of(foreign)))


@pytest.mark.parametrize(
    "name",
    [
        "transformer.text_model.layers.0.q_proj",
        "single_transformer_blocks.1.other",
        f"transformer_blocks.{'9' * 5000}.attn.to_q",
        "transformer_blocks.٣.attn.to_q",
        "blocks.0.attn.to_q",
        "transformer_blocks.0.attn.qkv",
        "lora_unet_lora_unet_x_embedder",
        "x_embedder." * 2 + "x",
    ],
)
def test_what_fits_no_model_is_not_written(tmp_path, name):
    assert find_layer(IMAGE, name) is None
    path = write(tmp_path / "a.safetensors", tensors_of([name]))
    with pytest.raises(LoraFileError, match=r"a\.safetensors") as raised:
        convert_lora(path, "portable", tmp_path / "b")
    assert len(str(raised.value)) < 1_000
    assert not (tmp_path / "b.safetensors").exists()
