"""Headers of weight files are checked before a library reads them; and what a model folder may not ask for."""

import json
import struct

import pytest
import torch
from comfyui_longcat.training.errors import LoraFileError, ModelError
from comfyui_longcat.training.weights.checkpoint_files import (
    BYTES,
    DEEPEST,
    check_component,
    open_weights,
    read_header,
    text_setting,
)
from comfyui_longcat.training.weights.tensor_file import read_tensor_file
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SOUND = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}


def written(path, header, data=22, padding=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content + padding)) + content + padding + bytes(data))
    return path


def with_b(**changes):
    return SOUND | {"b": SOUND["b"] | changes}


FAULTS = {
    "offset past the end": (with_b(data_offsets=[16, 24]), 22),
    "offsets that overlap": (with_b(data_offsets=[10, 16]), 16),
    "a hole": (with_b(data_offsets=[18, 24]), 24),
    "backwards": (with_b(data_offsets=[22, 16]), 22),
    "one offset": (with_b(data_offsets=[16]), 22),
    "offsets that are no numbers": (with_b(data_offsets=["16", "22"]), 22),
    "negative": (with_b(shape=[-3]), 22),
    "another shape": (with_b(shape=[4]), 22),
    "another dtype": (with_b(dtype="F32"), 22),
    "dtype of another type": (with_b(dtype=7), 22),
    "dtype in a list": (with_b(dtype=["BF16"]), 22),
    "true as a number": (with_b(shape=[True, 3]), 22),
    "a fraction": (with_b(shape=[3.0]), 22),
    "too large for 64 bits": (with_b(shape=[0, 2**64], data_offsets=[16, 16]), 16),
    "a product too large for 64 bits": (with_b(shape=[0, 2**62, 2**62], data_offsets=[16, 16]), 16),
    "shape of another type": (with_b(shape="3"), 22),
    "no shape": (SOUND | {"b": {"dtype": "BF16", "data_offsets": [16, 22]}}, 22),
    "no entry": (SOUND | {"b": None}, 22),
    "metadata that is a list": (SOUND | {"__metadata__": []}, 22),
    "metadata of numbers": (SOUND | {"__metadata__": {"a": 1}}, 22),
    "too few bytes": (SOUND, 21),
    "too many bytes": (SOUND, 23),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_header_is_our_error_and_names_the_file(tmp_path, fault):
    path = written(tmp_path / "a.safetensors", *FAULTS[fault])
    for error_class in (ModelError, LoraFileError):
        with pytest.raises(error_class) as raised:
            open_weights(path, error_class)
        assert str(path) in str(raised.value) and len(str(raised.value)) < 600


def test_sound_headers_pass_here_as_there(tmp_path):
    """Every dtype that safetensors itself writes, empty tensors, scalars, padding, metadata."""
    path = tmp_path / "a.safetensors"
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    dtypes += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    tensors = {
        f"{dtype}.{shape}": torch.zeros(shape, dtype=dtype) for dtype in dtypes for shape in ((), (3, 5), (0, 4))
    }
    save_file(tensors, path, {"format": "pt"})
    header = read_header(path)
    assert header.keys() == tensors.keys()
    assert {entry["dtype"] for entry in header.values()} <= set(BYTES)
    with open_weights(path) as file:
        assert file.metadata() == {"format": "pt"}
    assert read_header(written(path, SOUND, padding=b"   ")).keys() == {"a", "b"}


@pytest.mark.parametrize("seed", range(20))
def test_what_passes_here_is_read_by_safetensors(tmp_path, seed):
    """Bytes of a sound header, changed at random: whatever read_header lets through, the library reads."""
    generator = torch.Generator().manual_seed(seed)
    sound, path = json.dumps(SOUND).encode(), tmp_path / "a.safetensors"
    for _ in range(50):
        header = bytearray(sound)
        for place in torch.randint(len(sound), (2,), generator=generator):
            header[place] = int(torch.randint(32, 127, (1,), generator=generator))
        written(path, bytes(header))
        try:
            names = read_header(path)
        except ModelError as error:
            assert str(path) in str(error)
            continue
        if all(entry["dtype"] in BYTES for entry in names.values()):
            try:
                with safe_open(path, "pt") as file:
                    assert set(file.keys()) == set(names)
            except SafetensorError as error:
                pytest.fail(f"{bytes(header)}: {error}")


@pytest.mark.parametrize("name", [".weight_scale", ".scale_weight", "a.weight_scale", ".comfy_quant"])
def test_odd_names_of_scales_are_our_error(tmp_path, name):
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        read_tensor_file(path)


CODE = {
    "config.json": {"auto_map": {"AutoModel": "modeling.Evil"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization.Evil", None]}},
    "preprocessor_config.json": {"a": [{"auto_map": "x--y.Evil"}]},
    "generation_config.json": {"text_config": {"attn_implementation": "somebody/kernel"}},
    "processor_config.json": {"_attn_implementation": "somebody/kernel"},
}


@pytest.mark.parametrize("name", CODE)
def test_a_folder_that_brings_code_is_refused(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(CODE[name]), encoding="utf-8")
    with pytest.raises(ModelError, match=r"asks to run Python code of the model's own .*never done here") as raised:
        check_component(tmp_path)
    assert str(tmp_path / name) in str(raised.value)


def test_a_folder_that_brings_its_own_generate_is_refused(tmp_path):
    (tmp_path / "custom_generate").mkdir()
    with pytest.raises(ModelError, match="custom_generate"):
        check_component(tmp_path)


def test_ordinary_folders_pass(tmp_path):
    config = {"auto_map": {}, "_attn_implementation": "sdpa", "num_layers": DEEPEST, "depth": None, "deep": [[{}]]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    check_component(tmp_path)


@pytest.mark.parametrize("depth", [DEEPEST + 1, 10**60, -1, "2", [2], True, 2.0])
@pytest.mark.parametrize("name", ["num_layers", "num_hidden_layers", "depth", "layers_per_block"])
def test_a_depth_that_no_model_has_is_refused(tmp_path, name, depth):
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {name: depth}}), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"config\.json has {name} .*from 0 to {DEEPEST}"):
        check_component(tmp_path)


def test_the_language_models_setting_is_found_in_both_spellings():
    assert text_setting({"hidden_size": 1}, "hidden_size") == 1
    assert text_setting({"hidden_size": 1, "text_config": {"hidden_size": 2}}, "hidden_size") == 2
    for odd in ([], "x", 7, None, {}):
        assert text_setting({"hidden_size": 1, "text_config": odd}, "hidden_size") == 1
