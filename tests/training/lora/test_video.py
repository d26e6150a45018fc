"""LoRAs of LongCat-Video: the official one acts as the official code does, and all layouts change the model alike."""

import copy
import json

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError, LoraFileError
from comfyui_longcat.training.lora.convert import convert_lora
from comfyui_longcat.training.lora.families import IMAGE, VIDEO, family_of_modules, find_layer
from comfyui_longcat.training.lora.file import apply_lora, check_lora, read_lora, read_metadata, save_lora
from comfyui_longcat.training.lora.inject import TRAINED_ADAPTER, inject_lora, lora_layers
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-6
"""Of changes of weights whose largest entries are 0.02 or more."""

WIDTH = 64
ALPHA = 3.0
BLOCK = {
    "attn.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn.proj": ("self_attn.o",),
    "cross_attn.q_linear": ("cross_attn.q",),
    "cross_attn.kv_linear": ("cross_attn.k", "cross_attn.v"),
    "cross_attn.proj": ("cross_attn.o",),
    "ffn.w1": ("ffn.w1",),
    "ffn.w2": ("ffn.w2",),
    "ffn.w3": ("ffn.w3",),
    "adaLN_modulation.1": ("modulation.1",),
}
"""Official module -> the wrapper's (longcat-video.md, section 6)."""


@pytest.fixture(scope="module")
def golden(repository):
    with safe_open(repository / "tests" / "assets" / "longcat_video_golden.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads(file.metadata()["config"])


@pytest.fixture
def model(golden):
    tensors, config = golden
    model = LongCatVideoTransformer3DModel.from_config(config)
    model.load_state_dict({name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")})
    return model.requires_grad_(False).eval()


@pytest.fixture
def official(golden, tmp_path):
    """The golden file's LoRA as meituan-longcat would have saved it."""
    path = tmp_path / "official.safetensors"
    save_file({name[5:]: tensor for name, tensor in golden[0].items() if name.startswith("lora.")}, path)
    return path


def predict(model, golden):
    tensors, _ = golden
    with torch.no_grad():
        return model(
            hidden_states=tensors["in.x"],
            timestep=tensors["in.timestep_t2v"],
            encoder_hidden_states=tensors["in.caption"].squeeze(1),
            encoder_attention_mask=tensors["in.caption_mask"],
        )


def changes(path) -> dict[str, torch.Tensor]:
    return {name: pair.b @ pair.a for name, pair in read_lora(path).items()}


def assert_equal_changes(found, wanted, what) -> None:
    assert found.keys() == wanted.keys()
    difference = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    size = min(change.abs().max().item() for change in wanted.values())
    print(f"{what}: largest difference {difference:.1e}, of changes of at least {size:.2f}")
    assert size > 0.02
    assert difference < TOLERANCE


# The golden file's LoRA


@pytest.mark.parametrize("layout", [None, *VIDEO.layouts])
def test_the_official_lora_gives_the_official_output_in_every_layout(golden, model, official, tmp_path, layout):
    tensors, _ = golden
    path = official if layout is None else convert_lora(official, layout, tmp_path / "converted")
    apply_lora(model, path, 1.0, "a")
    output = predict(model, golden)
    difference = (output - tensors["out.t2v_lora"]).abs().max().item()
    effect = (tensors["out.t2v_lora"] - tensors["out.t2v"]).abs().max().item()
    print(f"{layout or 'as it is'}: differs by {difference:.1e}, effect of the LoRA {effect:.2f}")
    assert set(lora_layers(model, "a")) == {
        "blocks.0.attn.qkv",
        "blocks.0.ffn.w2",
        "blocks.1.adaLN_modulation.1",
        "blocks.1.cross_attn.kv_linear",
    }
    assert effect > 0.05
    assert difference < 1e-5


def test_blocks_are_merged_as_the_official_forward_computes_them(golden, official):
    """Its down gives s vectors one after the other, and each up makes its share of the output from one of them."""
    tensors, _ = golden
    found, generator = read_lora(official), torch.Generator().manual_seed(0)
    for module, count in (("blocks.0.attn.qkv", 3), ("blocks.1.cross_attn.kv_linear", 2), ("blocks.0.ffn.w2", 1)):
        start = "lora.lora___lorahyphen___" + module.replace(".", "___lorahyphen___")
        down, scale = tensors[f"{start}.lora_down.weight"], tensors[f"{start}.alpha_scale"]
        ends = ["lora_up.weight"] if count == 1 else [f"lora_up.blocks.{number}.weight" for number in range(count)]
        x = torch.randn(5, down.shape[1], generator=generator)
        hidden = (x @ down.T).chunk(count, dim=1)
        wanted = scale * torch.cat([h @ tensors[f"{start}.{end}"].T for h, end in zip(hidden, ends, strict=True)], 1)
        merged = found[module].b @ found[module].a
        difference = (x @ merged.T - wanted).abs().max().item()
        print(f"{module}: differs by {difference:.1e}, scale {wanted.abs().max().item():.2f}")
        assert wanted.abs().max() > 0.1
        assert difference < 1e-5


def test_the_official_layout_comes_back_with_its_own_blocks(official, tmp_path):
    """Also by way of the split ones: 3 blocks of qkv, 2 of kv, 6 of the modulation, ranks as before."""
    before = {name: list(tensor.shape) for name, tensor in load_file(official).items()}
    there = official
    for number, layout in enumerate(["portable", "wanvideowrapper", "fastvideo", "official"]):
        there = convert_lora(there, layout, tmp_path / str(number))
    assert {name: list(tensor.shape) for name, tensor in load_file(there).items()} == before


def test_it_acts_nearly_the_same_in_bfloat16(golden, model, official):
    """Ten times as strong, so that bfloat16's own error is small beside it."""
    half, plain = copy.deepcopy(model).to(torch.bfloat16), predict(model, golden)
    for each in (model, half):
        apply_lora(each, official, 10.0, "a")
    wanted = predict(model, golden)
    difference, effect = ((wanted - other).norm() / wanted.norm() for other in (predict(half, golden), plain))
    print(f"bfloat16 with LoRA differs by {difference:.3f}, effect of the LoRA {effect:.3f}, relative")
    assert effect > 0.15
    assert difference < 0.03


# Layouts


def adapters(model, rank=4, **ranks) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For every linear of two blocks and some outside: A [r, in] and B [out, r]."""
    linears, generator, found = dict(model.named_modules()), torch.Generator().manual_seed(3), {}
    names = [f"blocks.{number}.{name}" for number in (0, 1) for name in BLOCK]
    for name in [*names, "t_embedder.mlp.2", "y_embedder.y_proj.0", "final_layer.linear"]:
        r, linear = ranks.get(name.rpartition(".")[2], rank), linears[name]
        a = torch.randn(r, linear.in_features, generator=generator) * 0.2
        found[name] = (a, torch.randn(linear.out_features, r, generator=generator) * 0.2)
    return found


def keyed(pairs, prefix, alpha=None, ends=("lora_A.weight", "lora_B.weight")) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors |= {f"{prefix}{name}.{ends[0]}": a.clone(), f"{prefix}{name}.{ends[1]}": b.clone()}
        if alpha is not None:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "model.diffusion_model.", ""])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_reads_official_names_with_any_prefix(model, tmp_path, prefix, alpha):
    pairs = adapters(model)
    save_file(keyed(pairs, prefix, alpha), tmp_path / "a.safetensors")
    scale = 1.0 if alpha is None else alpha / 4
    wanted = {name: scale * (b @ a) for name, (a, b) in pairs.items()}
    assert_equal_changes(changes(tmp_path / "a.safetensors"), wanted, f"prefix {prefix!r}, alpha {alpha}")


def wrapper_file(path, fastvideo=False) -> dict[str, torch.Tensor]:
    """Trained with q, k and v apart, every part with an A of its own; returns the change of each official module."""
    generator, tensors, wanted = torch.Generator().manual_seed(5), {}, {}
    renamed = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out"}
    for module in ("attn.qkv", "cross_attn.kv_linear", "cross_attn.proj"):
        rows = []
        for part in BLOCK[module]:
            parent, _, last = part.rpartition(".")
            name = f"blocks.1.{parent}.{renamed[last]}" if fastvideo else f"diffusion_model.blocks.1.{part}"
            a, b = (torch.randn(shape, generator=generator) * 0.2 for shape in ((4, WIDTH), (WIDTH, 4)))
            ends = ("lora_A", "lora_B", "lora_alpha") if fastvideo else ("lora_down.weight", "lora_up.weight", "alpha")
            tensors |= dict(zip((f"{name}.{end}" for end in ends), (a, b, torch.tensor(ALPHA)), strict=True))
            rows.append(ALPHA / 4 * (b @ a))
        wanted[f"blocks.1.{module}"] = torch.cat(rows)
    save_file(tensors, path)
    return wanted


@pytest.mark.parametrize("fastvideo", [False, True])
def test_parts_are_joined_as_the_model_has_them(tmp_path, fastvideo):
    wanted = wrapper_file(tmp_path / "a.safetensors", fastvideo)
    assert_equal_changes(changes(tmp_path / "a.safetensors"), wanted, "fastvideo" if fastvideo else "wrapper")


def test_a_part_alone_leaves_the_others_unchanged(tmp_path):
    a, b = torch.ones(4, WIDTH), torch.ones(WIDTH, 4)
    save_file(keyed({"blocks.0.self_attn.k": (a, b)}, "diffusion_model."), tmp_path / "a.safetensors")
    (change,) = changes(tmp_path / "a.safetensors").values()
    assert [part.abs().sum().item() for part in change.chunk(3)] == [0.0, 4.0 * WIDTH * WIDTH, 0.0]


def sources(model, official, folder):
    folder.mkdir()
    yield official
    save_file(keyed(adapters(model), "transformer.", ALPHA), folder / "one rank.safetensors")
    yield folder / "one rank.safetensors"
    save_file(keyed(adapters(model, 4, qkv=9, w2=3, proj=6), ""), folder / "ranks.safetensors")
    yield folder / "ranks.safetensors"
    for name in ("wrapper", "fastvideo"):
        wrapper_file(folder / f"{name}.safetensors", name == "fastvideo")
        yield folder / f"{name}.safetensors"


@pytest.mark.parametrize("layout", VIDEO.layouts)
def test_round_trips_among_all_layouts(model, official, tmp_path, layout):
    for source in sources(model, official, tmp_path / "sources"):
        wanted = changes(source)
        there = convert_lora(source, layout, tmp_path / "there" / source.stem)
        assert_equal_changes(changes(there), wanted, f"{source.stem} to {layout}")
        for back in VIDEO.layouts:
            again = convert_lora(there, back, tmp_path / "back" / f"{source.stem}-{back}")
            assert_equal_changes(changes(again), wanted, f"{source.stem} to {layout} to {back}")


def test_keys_of_the_written_layouts(model, tmp_path):
    names = ("blocks.0.attn.qkv", "blocks.0.cross_attn.proj")
    pairs = {name: pair for name, pair in adapters(model).items() if name in names}
    save_file(keyed(pairs, ""), tmp_path / "a.safetensors")
    keys = {
        layout: set(load_file(convert_lora(tmp_path / "a.safetensors", layout, tmp_path / layout)))
        for layout in VIDEO.layouts
    }
    hyphened = "lora___lorahyphen___blocks___lorahyphen___0___lorahyphen___attn___lorahyphen___qkv"
    split = {f"blocks.0.self_attn.{part}" for part in "qkv"}
    assert "diffusion_model.blocks.0.attn.qkv.alpha" in keys["portable"] and len(keys["portable"]) == 6
    assert {f"{hyphened}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha_scale")} < keys["official"]
    assert {f"diffusion_model.{name}.lora_A.weight" for name in split} < keys["wanvideowrapper"]
    assert "diffusion_model.blocks.0.cross_attn.o.lora_B.weight" in keys["wanvideowrapper"]
    assert len(keys["wanvideowrapper"]) == len(keys["fastvideo"]) == 12
    assert "blocks.0.cross_attn.to_out.lora_alpha" in keys["fastvideo"]
    assert "blocks.0.self_attn.to_v.lora_B" in keys["fastvideo"]


def test_an_official_file_has_one_rank(model, tmp_path):
    """The official loader is told one for all modules."""
    save_file(keyed(adapters(model, 4, qkv=9, w2=3), ""), tmp_path / "a.safetensors")
    written = load_file(convert_lora(tmp_path / "a.safetensors", "official", tmp_path / "b"))
    assert {tensor.shape[0] for name, tensor in written.items() if "lora_down" in name} == {9}
    assert {tensor.shape[1] for name, tensor in written.items() if "lora_up" in name} == {9}


def test_every_linear_of_a_block_has_a_name_in_every_scheme(model):
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("blocks.1.")]
    assert len(linears) == len(BLOCK)
    for name in linears:
        found = find_layer(VIDEO, f"diffusion_model.{name}")
        assert found.name == name and found.scheme == 0
        assert found.names[2] == tuple(f"blocks.1.{part}" for part in BLOCK[name.removeprefix("blocks.1.")])
        assert find_layer(IMAGE, name) is None
        assert all(family_of_modules([part]) is VIDEO for names in found.names for part in names)


# What the trainer writes


@pytest.fixture
def trained(model):
    parameters = inject_lora(model, LongCatVideoFamily().lora_targets("attention"), rank=4, alpha=ALPHA, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_a_saved_adapter_has_alpha_and_says_what_it_is(golden, trained, tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(path, trained, {"model_family": "longcat_video", "model_flavour": "final"})
    check_lora(path, trained)
    tensors = load_file(path)
    names = {f"diffusion_model.{name}" for name in lora_layers(trained, TRAINED_ADAPTER)}
    assert len(names) == 2 * 5
    assert set(tensors) == {f"{n}.{end}" for n in names for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert {tensor.item() for name, tensor in tensors.items() if name.endswith(".alpha")} == {4.0}
    assert read_metadata(path) == {
        "model_family": "longcat_video",
        "model_flavour": "final",
        "lora_rank": "4",
        "lora_alpha": "3",
        "lora_targets": "attn.proj, attn.qkv, cross_attn.kv_linear, cross_attn.proj, cross_attn.q_linear",
        "sign_convention": "the transformer's output estimates x0 - noise",
    }


def test_a_saved_adapter_acts_as_the_trained_one(golden, trained, tmp_path):
    save_lora(tmp_path / "a.safetensors", trained, {})
    wanted = predict(trained, golden)
    plain = LongCatVideoTransformer3DModel.from_config(golden[1])
    plain.load_state_dict({name[3:]: tensor for name, tensor in golden[0].items() if name.startswith("sd.")})
    before = predict(plain.eval(), golden)
    apply_lora(plain, tmp_path / "a.safetensors", 1.0, "a")
    difference, effect = ((predict(plain, golden) - other).abs().max().item() for other in (wanted, before))
    print(f"differs by {difference:.1e}, effect {effect:.2f}")
    assert effect > 0.05
    assert difference < 1e-5


# Refused


def image_file(path):
    a, b = torch.ones(4, 32), torch.ones(32, 4)
    save_file(keyed({"transformer_blocks.0.attn.to_q": (a, b)}, "transformer."), path)
    return path


def test_a_lora_of_the_other_family_does_not_fit(model, tmp_path):
    path = image_file(tmp_path / "a.safetensors")
    message = r"In the file: transformer_blocks\.0\.attn\.to_q; in the model: .*blocks\.\d.*made for LongCat-Image"
    with pytest.raises(LoraFileError, match=message):
        apply_lora(model, path, 1.0, "a")


@pytest.mark.parametrize("layout", ["official", "wanvideowrapper", "fastvideo"])
def test_a_video_layout_is_refused_for_an_image_lora(tmp_path, layout):
    path = image_file(tmp_path / "a.safetensors")
    message = f"is a LoRA of LongCat-Image, .* no layout '{layout}'; choose one of portable, peft, native, kohya"
    with pytest.raises(ConfigError, match=message):
        convert_lora(path, layout, tmp_path / "b")


@pytest.mark.parametrize("layout", ["peft", "native", "kohya"])
def test_an_image_layout_is_refused_for_a_video_lora(official, tmp_path, layout):
    message = f"LongCat-Video, .* no layout '{layout}'; choose one of portable, official, wanvideowrapper, fastvideo"
    with pytest.raises(ConfigError, match=message):
        convert_lora(official, layout, tmp_path / "b")


def test_modules_of_two_families_are_not_converted(tmp_path):
    a, b = torch.ones(4, 32), torch.ones(32, 4)
    names = ("blocks.0.attn.proj", "blocks.0.ffn.w1", "transformer_blocks.0.attn.to_q")
    save_file(keyed(dict.fromkeys(names, (a, b)), ""), tmp_path / "a.safetensors")
    message = (
        r"1 of 3 .*LongCat-Video's\. In the file: transformer_blocks\.0\.attn\.to_q; in the model: blocks\.0\.attn\.qkv"
    )
    with pytest.raises(LoraFileError, match=message):
        convert_lora(tmp_path / "a.safetensors", "portable", tmp_path / "b")


def test_an_adapter_of_sound_is_refused(model, official, tmp_path):
    """LongCat-Video-Avatar's, in the same layout."""
    start = "lora___lorahyphen___blocks___lorahyphen___0___lorahyphen___audio_cross_attn___lorahyphen___proj"
    avatar = {f"{start}.lora_down.weight": torch.ones(4, WIDTH), f"{start}.lora_up.weight": torch.ones(WIDTH, 4)}
    save_file(load_file(official) | avatar, tmp_path / "a.safetensors")
    with pytest.raises(LoraFileError, match=r"1 of 5 modules.*In the file: blocks\.0\.audio_cross_attn\.proj"):
        apply_lora(model, tmp_path / "a.safetensors", 1.0, "a")


def test_an_adapter_of_the_convolution_is_refused(tmp_path):
    """Suffixes such as `proj` also mean the transformer's entry."""
    pair = (torch.ones(4, 16, 1, 2, 2), torch.ones(WIDTH, 4, 1, 1, 1))
    save_file(keyed({"x_embedder.proj": pair}, "transformer."), tmp_path / "a.safetensors")
    with pytest.raises(LoraFileError, match=r"adapts a convolution, transformer\.x_embedder\.proj.*SimpleTuner"):
        read_lora(tmp_path / "a.safetensors")


def test_joined_and_split_for_one_module_are_refused(tmp_path):
    a = torch.ones(4, WIDTH)
    pairs = {"blocks.0.attn.qkv": (a, torch.ones(3 * WIDTH, 4)), "blocks.0.self_attn.k": (a, torch.ones(WIDTH, 4))}
    save_file(keyed(pairs, ""), tmp_path / "a.safetensors")
    with pytest.raises(
        LoraFileError, match=r"holds blocks\.0\.attn\.qkv twice, the second time as blocks\.0\.self_attn"
    ):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize("missing", ["lora_up.blocks.1.weight", "lora_down.weight"])
def test_a_missing_block_is_noticed(official, tmp_path, missing):
    start = "lora___lorahyphen___blocks___lorahyphen___0___lorahyphen___attn___lorahyphen___qkv"
    tensors = load_file(official)
    del tensors[f"{start}.{missing}"]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LoraFileError, match=r"no complete LoRA: blocks\.0\.attn\.qkv"):
        read_lora(tmp_path / "a.safetensors")
