"""Every layout of LoRA files is read with its alpha, and written layouts change the model's weights alike."""

import json
import math

import diffusers
import pytest
import torch
from comfyui_longcat.training.errors import ConfigError, LoraFileError
from comfyui_longcat.training.lora.convert import convert_lora
from comfyui_longcat.training.lora.families import IMAGE, find_layer
from comfyui_longcat.training.lora.file import apply_lora, read_lora, read_metadata
from diffusers import LongCatImageTransformer2DModel
from packaging.version import Version
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-6
"""Of changes of weights whose largest entries are 0.02 or more."""

ALPHA = 3.0
WIDTH = 32
DOUBLE, SINGLE = "transformer_blocks.1", "single_transformer_blocks.2"
PARTS = {
    f"{DOUBLE}.attn.to_q": "double_blocks.1.img_attn.qkv",
    f"{DOUBLE}.attn.to_k": "double_blocks.1.img_attn.qkv",
    f"{DOUBLE}.attn.to_v": "double_blocks.1.img_attn.qkv",
    f"{DOUBLE}.attn.to_out.0": "double_blocks.1.img_attn.proj",
    f"{DOUBLE}.attn.add_k_proj": "double_blocks.1.txt_attn.qkv",
    f"{DOUBLE}.ff_context.net.0.proj": "double_blocks.1.txt_mlp.0",
    f"{DOUBLE}.norm1.linear": "double_blocks.1.img_mod.lin",
    f"{SINGLE}.attn.to_q": "single_blocks.2.linear1",
    f"{SINGLE}.attn.to_v": "single_blocks.2.linear1",
    f"{SINGLE}.proj_mlp": "single_blocks.2.linear1",
    f"{SINGLE}.proj_out": "single_blocks.2.linear2",
    "proj_out": "final_layer.linear",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_embed.timestep_embedder.linear_2": "time_in.out_layer",
}
"""Diffusers module -> the native one that holds it (longcat-image.md, section 8)."""


def make_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LongCatImageTransformer2DModel(
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 6, 6],
        )
    return model.requires_grad_(False).eval()


def make_adapters(modules=tuple(PARTS), ranks=(4, 2, 7)) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module -> A [r, in] and B [out, r]; ranks differ from module to module."""
    linears, generator = dict(make_model().named_modules()), torch.Generator().manual_seed(3)
    adapters = {}
    for number, name in enumerate(modules):
        rank, linear = ranks[number % len(ranks)], linears[name]
        a = torch.randn(rank, linear.in_features, generator=generator) * 0.2
        adapters[name] = (a, torch.randn(linear.out_features, rank, generator=generator) * 0.2)
    return adapters


def keyed(adapters, spell, ends=("lora_A.weight", "lora_B.weight"), alpha=None) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (a, b) in adapters.items():
        tensors |= {f"{spell(name)}.{ends[0]}": a.clone(), f"{spell(name)}.{ends[1]}": b.clone()}
        if alpha is not None:
            tensors[f"{spell(name)}.alpha"] = torch.tensor(alpha)
    return tensors


def underscored(prefix):
    return lambda name: prefix + name.replace(".", "_")


KOHYA = ("lora_down.weight", "lora_up.weight")
DOTTED = ("lora_A.weight", "lora_B.weight")
SPELLINGS = {
    "transformer": (lambda name: f"transformer.{name}", DOTTED),
    "bare": (lambda name: name, DOTTED),
    "time_text_embed": (lambda name: "transformer." + name.replace("time_embed", "time_text_embed"), DOTTED),
    "simpletuner comfyui": (lambda name: f"diffusion_model.{name}", DOTTED),
    "onetrainer": (underscored("lora_transformer_"), KOHYA),
    "lycoris": (underscored("lycoris_"), KOHYA),
    "lora_unet with diffusers names": (underscored("lora_unet_"), KOHYA),
    "unet": (lambda name: f"unet.{name}", DOTTED),
}


def changes(path) -> dict[str, torch.Tensor]:
    return {name: pair.b @ pair.a for name, pair in read_lora(path).items()}


def assert_equal_changes(found, wanted, what) -> None:
    assert found.keys() == wanted.keys()
    difference = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
    size = min(change.abs().max().item() for change in wanted.values())
    print(f"{what}: largest difference {difference:.1e}, of changes of at least {size:.2f}")
    assert size > 0.02
    assert difference < TOLERANCE


@pytest.mark.parametrize("layout", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_reads_every_spelling_with_its_alpha(tmp_path, layout, alpha):
    adapters = make_adapters()
    spell, ends = SPELLINGS[layout]
    save_file(keyed(adapters, spell, ends, alpha), tmp_path / "a.safetensors")
    scales = {name: 1.0 if alpha is None else alpha / a.shape[0] for name, (a, _) in adapters.items()}
    wanted = {name: scales[name] * (b @ a) for name, (a, b) in adapters.items()}
    assert_equal_changes(changes(tmp_path / "a.safetensors"), wanted, layout)


def native_file(path, prefix, ends, flat: bool) -> dict[str, torch.Tensor]:
    """A native LoRA with fused modules, written by hand; returns the change of each diffusers module."""
    generator = torch.Generator().manual_seed(5)
    tensors, wanted = {}, {}
    for native, sizes in (
        ("double_blocks.1.img_attn.qkv", {f"{DOUBLE}.attn.to_{x}": WIDTH for x in "qkv"}),
        ("double_blocks.0.txt_attn.qkv", {f"transformer_blocks.0.attn.add_{x}_proj": WIDTH for x in "qkv"}),
        (
            "single_blocks.2.linear1",
            {f"{SINGLE}.attn.to_{x}": WIDTH for x in "qkv"} | {f"{SINGLE}.proj_mlp": 4 * WIDTH},
        ),
        ("double_blocks.1.txt_mlp.2", {f"{DOUBLE}.ff_context.net.2": WIDTH}),
        ("time_in.in_layer", {"time_embed.timestep_embedder.linear_1": WIDTH}),
    ):
        wide = {"double_blocks.1.txt_mlp.2": 4 * WIDTH, "time_in.in_layer": 256}.get(native, WIDTH)
        a = torch.randn(4, wide, generator=generator) * 0.2
        b = torch.randn(sum(sizes.values()), 4, generator=generator) * 0.2
        name = prefix + (native.replace(".", "_") if flat else native)
        tensors |= {f"{name}.{ends[0]}": a, f"{name}.{ends[1]}": b, f"{name}.alpha": torch.tensor(ALPHA)}
        start = 0
        for module, rows in sizes.items():
            wanted[module] = ALPHA / 4 * (b[start : start + rows] @ a)
            start += rows
    save_file(tensors, path)
    return wanted


NATIVE = {
    "diffusion_model": ("diffusion_model.", DOTTED, False),
    "bare": ("", DOTTED, False),
    "lora_unet": ("lora_unet_", KOHYA, True),
}


@pytest.mark.parametrize("layout", NATIVE)
def test_splits_fused_modules_by_rows(tmp_path, layout):
    wanted = native_file(tmp_path / "a.safetensors", *NATIVE[layout])
    assert_equal_changes(changes(tmp_path / "a.safetensors"), wanted, f"native, {layout}")


def test_swaps_the_halves_of_the_last_modulation(tmp_path):
    a, b = make_adapters(["norm_out.linear"])["norm_out.linear"]
    name = "diffusion_model.final_layer.adaLN_modulation.1"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "a.safetensors")
    shift, scale = (b @ a).chunk(2)
    assert_equal_changes(
        changes(tmp_path / "a.safetensors"), {"norm_out.linear": torch.cat([scale, shift])}, "norm_out"
    )


def write_peft(folder, config, adapters) -> None:
    folder.mkdir(exist_ok=True)
    save_file(keyed(adapters, lambda name: f"base_model.model.{name}"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_a_folder_that_peft_saved_keeps_its_alpha(tmp_path):
    """Written by peft itself, like the official scripts do: rank 32 and alpha left at 8 become rank 4 and alpha 1."""
    from peft import LoraConfig, get_peft_model

    patterns = {"rank_pattern": {"to_k": 6}, "alpha_pattern": {"attn.to_q": 2.0}}
    config = LoraConfig(r=4, lora_alpha=1, init_lora_weights=False, target_modules=["to_q", "to_k"], **patterns)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(make_model(), config)
    model.save_pretrained(tmp_path / "saved")
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    wanted = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    assert {layer.scaling["default"] for layer in layers.values()} == {2 / 4, 1 / 6}
    assert_equal_changes(changes(tmp_path / "saved"), wanted, "peft's folder")
    assert_equal_changes(changes(tmp_path / "saved" / "adapter_model.safetensors"), wanted, "the file in it")


def test_rank_stabilised_scale(tmp_path):
    adapters = make_adapters(ranks=(4,))
    write_peft(tmp_path / "a", {"r": 4, "lora_alpha": ALPHA, "use_rslora": True}, adapters)
    wanted = {name: ALPHA / math.sqrt(4) * (b @ a) for name, (a, b) in adapters.items()}
    assert_equal_changes(changes(tmp_path / "a"), wanted, "rslora")


def test_metadata_of_diffusers_is_honoured(tmp_path):
    """`save_lora_adapter` writes bare names and the alpha into the metadata alone."""
    from peft import LoraConfig

    model = make_model()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.add_adapter(LoraConfig(r=4, lora_alpha=2, init_lora_weights=False, target_modules=["to_q"]))
    model.save_lora_adapter(tmp_path)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    wanted = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    assert_equal_changes(changes(tmp_path / "pytorch_lora_weights.safetensors"), wanted, "diffusers' metadata")


@pytest.mark.parametrize("with_alpha", [False, True])
def test_alpha_entries_go_before_metadata_and_are_not_multiplied(tmp_path, with_alpha):
    adapters = make_adapters(ranks=(4,))
    tensors = keyed(adapters, SPELLINGS["transformer"][0], alpha=ALPHA if with_alpha else None)
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    scale = ALPHA / 4 if with_alpha else 2.0
    wanted = {name: scale * (b @ a) for name, (a, b) in adapters.items()}
    assert_equal_changes(changes(tmp_path / "a.safetensors"), wanted, f"alpha entries: {with_alpha}")


def sources(folder):
    """One file or folder of each layout in the wild."""
    folder.mkdir(exist_ok=True)
    adapters = make_adapters()
    for layout, (spell, ends) in SPELLINGS.items():
        path = folder / f"{layout}.safetensors"
        save_file(keyed(adapters, spell, ends, ALPHA), path)
        yield path
    for layout, how in NATIVE.items():
        path = folder / f"native {layout}.safetensors"
        native_file(path, *how)
        yield path
    write_peft(folder / "peft", {"r": 4, "lora_alpha": ALPHA}, make_adapters(ranks=(4,)))
    yield folder / "peft"


@pytest.mark.parametrize("layout", IMAGE.layouts)
def test_round_trips_among_all_layouts(tmp_path, layout):
    for source in sources(tmp_path / "sources"):
        wanted = changes(source)
        there = convert_lora(source, layout, tmp_path / "there" / source.stem)
        assert_equal_changes(present(changes(there)), wanted, f"{source.stem} to {layout}")
        for back in IMAGE.layouts:
            again = convert_lora(there, back, tmp_path / "back" / f"{source.stem}-{back}")
            assert_equal_changes(present(changes(again)), wanted, f"{source.stem} to {layout} to {back}")


def present(found):
    """Without the zeros that parts of a fused module get which had no adapter."""
    return {name: change for name, change in found.items() if change.abs().max() > 0}


def test_a_shared_a_stays_shared(tmp_path):
    native_file(tmp_path / "a.safetensors", *NATIVE["diffusion_model"])
    portable = convert_lora(tmp_path / "a.safetensors", "portable", tmp_path / "b")
    native = load_file(convert_lora(portable, "native", tmp_path / "c"))
    assert {a.shape[0] for key, a in native.items() if "lora_A" in key} == {4}


def test_ranks_of_a_fused_module_add_up(tmp_path):
    modules = [f"{SINGLE}.attn.to_q", f"{SINGLE}.attn.to_k", f"{SINGLE}.proj_mlp"]
    save_file(keyed(make_adapters(modules, (4, 2, 3)), lambda name: name), tmp_path / "a.safetensors")
    native = load_file(convert_lora(tmp_path / "a.safetensors", "kohya", tmp_path / "b"))
    assert {key: list(tensor.shape) for key, tensor in native.items()} == {
        "lora_unet_single_blocks_2_linear1.lora_down.weight": [9, WIDTH],
        "lora_unet_single_blocks_2_linear1.lora_up.weight": [7 * WIDTH, 9],
        "lora_unet_single_blocks_2_linear1.alpha": [],
    }


def test_every_linear_of_the_model_has_a_native_name():
    linears = [name for name, module in make_model().named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 2 * 14 + 3 * 6 + 6
    assert {find_layer(IMAGE, name).name for name in linears} == set(linears)
    assert find_layer(IMAGE, "vector_in.in_layer") is None


def predict(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 4, 64, generator=generator),
            encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(3, 3),
        ).sample


@pytest.mark.parametrize("ranks", [(4,), (4, 2, 7)])
@pytest.mark.parametrize("layout", ["portable", "peft"])
def test_loads_in_diffusers_and_peft(tmp_path, layout, ranks):
    from peft import PeftModel

    if layout == "portable" and len(ranks) > 1 and Version(diffusers.__version__) < Version("0.40"):
        pytest.skip("diffusers before 0.40 scales layers of other ranks than the most frequent one falsely")
    save_file(keyed(make_adapters(ranks=ranks), lambda name: name, alpha=ALPHA), tmp_path / "a.safetensors")
    ours, plain = make_model(), predict(make_model())
    apply_lora(ours, tmp_path / "a.safetensors", 1.0, "a")
    written = convert_lora(tmp_path / "a.safetensors", layout, tmp_path / "b")
    theirs = make_model()
    if layout == "peft":
        theirs = PeftModel.from_pretrained(theirs, written.parent)
    else:
        theirs.load_lora_adapter(load_file(written), prefix="transformer")
    difference = ((predict(theirs) - predict(ours)).norm() / predict(ours).norm()).item()
    effect = ((predict(ours) - plain).norm() / plain.norm()).item()
    adapted = {name for name, module in theirs.named_modules() if hasattr(module, "lora_A")}
    print(f"{layout}: effect {effect:.2f}, ours against theirs {difference:.1e}")
    assert {name.removeprefix("base_model.model.") for name in adapted} == set(PARTS)
    assert effect > 0.1 and difference < 1e-5


def test_nothing_is_overwritten_and_the_same_conversion_is_found_again(tmp_path):
    for number, name in enumerate(("a", "b")):
        adapters = {module: (a + number, b) for module, (a, b) in make_adapters().items()}
        save_file(keyed(adapters, lambda name: name), tmp_path / f"{name}.safetensors", {"longcat": '{"step": "5"}'})
    for layout in IMAGE.layouts:
        written = [convert_lora(tmp_path / f"{name}.safetensors", layout, tmp_path / layout) for name in "abab"]
        assert written[0] == written[2] != written[1] == written[3]
        top = written[1].parent if layout == "peft" else written[1]
        assert top.stem == f"{layout}-2"
        assert read_metadata(written[0]) == {"step": "5"}
    edited = tmp_path / "peft" / "adapter_config.json"
    edited.write_text(json.dumps(json.loads(edited.read_text(encoding="utf-8")) | {"lora_alpha": 1}), encoding="utf-8")
    assert convert_lora(tmp_path / "a.safetensors", "peft", tmp_path / "peft").parent.name == "peft-3"


def test_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="layout is 'comfy'; it must be one of portable, peft, native, kohya"):
        convert_lora(tmp_path / "a", "comfy", tmp_path / "b")


Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([f"{Q}.hada_w1_a"], "is a LoHa, not a plain LoRA"),
        (["lycoris_transformer_blocks_0_attn_to_q.lokr_w1"], "is a LoKr"),
        ([f"{Q}.oft_blocks"], "is an OFT"),
        ([f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", f"{Q}.dora_scale"], "is a DoRA"),
        ([f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", f"{Q}.diff_b"], "not read here. In the file: .*diff_b"),
        ([f"{Q}.lora_A.weight", f"{Q}.lora_down.weight"], r"not read here. In the file: .*lora_down"),
        (["lora_te1_x.lora_down.weight", "lora_te1_x.lora_up.weight"], "In the file: lora_te1_x.*expected.*to_q"),
        ([f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"], "no adapter_config.json"),
        (
            [f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", f"{Q[12:]}.lora_A.weight", f"{Q[12:]}.lora_B.weight"],
            "attn.to_q twice",
        ),
        (
            [f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{x}.weight" for x in "AB"],
            r"qkv has 4 rows, not 4 \+ 4 \+ 4",
        ),
    ],
)
def test_refuses_what_is_no_plain_lora_of_one_meaning(tmp_path, keys, message):
    save_file({key: torch.ones(4, 4) for key in keys}, tmp_path / "a.safetensors")
    with pytest.raises(LoraFileError, match=message):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (torch.tensor(float("nan")), "a.safetensors holds NaN or infinity in 1 of 1 modules"),
        (torch.ones(2), r"alpha of .*to_q has the shape \[2\]; it must be one number"),
    ],
)
def test_refuses_a_faulty_alpha(tmp_path, alpha, message):
    tensors = keyed(make_adapters([f"{DOUBLE}.attn.to_q"]), lambda name: name) | {f"{DOUBLE}.attn.to_q.alpha": alpha}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LoraFileError, match=message):
        read_lora(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4}, "lora_alpha None; both must be numbers"),
        ({"r": 8, "lora_alpha": 8}, "the rank 8, but its tensors have 4: it belongs to another LoRA"),
        ({"r": 4, "lora_alpha": 8, "use_dora": True}, "DoRA adapter"),
        ({"r": 4, "lora_alpha": 8, "peft_type": "LOHA"}, "LOHA adapter"),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"(": 1}}, r"has '\(' in alpha_pattern, which is no module's name"),
        ({"r": 4.5, "lora_alpha": 8}, "the rank 4.5, but its tensors have 4"),
        ({"r": 4, "lora_alpha": 8, "use_rslora": "false"}, "use_rslora false; it must be true or false"),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": "1"}}, "alpha_pattern .* numbers by module"),
        ([], "holds a list, not an object"),
    ],
)
def test_refuses_a_faulty_adapter_config(tmp_path, config, message):
    write_peft(tmp_path / "a", config, make_adapters(ranks=(4,)))
    with pytest.raises(LoraFileError, match=message):
        read_lora(tmp_path / "a")


def test_a_lora_of_another_model_is_not_converted(tmp_path):
    save_file(
        {f"diffusion_model.blocks.0.attn.other.lora_{x}.weight": torch.ones(4, 4) for x in "AB"},
        tmp_path / "a.safetensors",
    )
    message = (
        r"1 of 1 modules.*not LongCat-Image or LongCat-Video's.*In the file: blocks\.0\.attn\.other; in the model: t"
    )
    with pytest.raises(LoraFileError, match=message):
        convert_lora(tmp_path / "a.safetensors", "peft", tmp_path / "b")
    assert not (tmp_path / "b").exists()
