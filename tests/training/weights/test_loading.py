"""What libraries raise over a damaged model folder is our error, which names the folder; nothing of it is run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_longcat.training.errors import LoraFileError, ModelError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.components import open_text_encoder, open_vae
from comfyui_longcat.training.weights.loading import LONGEST_REASON, load_tokenizer, reading
from comfyui_longcat.training.weights.qwen_file import image_processor
from comfyui_longcat.training.weights.spec import ModelSpec

CPU = torch.device("cpu")
OPENERS = {"vae": open_vae, "text_encoder": open_text_encoder, "transformer": open_transformer}


@pytest.fixture
def model(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the twin that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def spec_of(folder: Path) -> ModelSpec:
    config = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
    return ModelSpec(config=config, models_dirs=(), folder=folder)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def assert_refused(open_part, folder: Path, words: str = "") -> None:
    with pytest.raises(ModelError) as raised:
        with open_part(spec_of(folder), CPU, NoCallbacks()):
            pass
    message = str(raised.value)
    assert str(folder) in message and words in message and len(message) < 1_000


@pytest.mark.parametrize("text", ["", "#version: 0.2\nx", "a b c d\n", "nowhere atall\n", "\x00", "[]"])
def test_damaged_merges_are_our_error(model, text):
    (model / "tokenizer" / "merges.txt").write_text(text, encoding="utf-8")
    try:
        tokenizer = load_tokenizer(model / "tokenizer")
    except ModelError as error:
        assert str(model / "tokenizer") in str(error)
    else:
        assert tokenizer("a")["input_ids"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": "b"}', '{"a": -1}', '{"a": 1e3}', "null", '{"a": [1]}'])
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_our_error(model, name, text):
    (model / "tokenizer" / name).write_text(text, encoding="utf-8")
    if name == "tokenizer_config.json" and text == '{"a": [1]}':
        return  # an object like any other
    try:
        tokenizer = load_tokenizer(model / "tokenizer")
    except ModelError as error:
        assert str(model / "tokenizer") in str(error)
    else:
        assert tokenizer is not None


def test_a_tokenizer_of_another_model_is_our_error(model):
    """Its numbers are beyond the embeddings: torch would end in an IndexError at the first such word."""
    path = model / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    word = next(word for word in vocabulary if len(word) == 1)
    path.write_text(json.dumps(vocabulary | {word: 10**6}), encoding="utf-8")
    assert_refused(open_text_encoder, model, "its tokens go up to number 1000000")


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("text_encoder", {"text_config": {"hidden_size": 64, "num_hidden_layers": "two"}}),
        ("text_encoder", {"vision_config": {"num_heads": 0}}),
        ("text_encoder", {"vision_config": [1]}),
        ("text_encoder", {"dtype": "float31"}),
        ("vae", {"block_out_channels": "64"}),
        ("vae", {"down_block_types": ["NoSuchBlock"]}),
        ("vae", {"norm_num_groups": 0}),
        ("vae", {"act_fn": 7}),
        ("transformer", {"num_attention_heads": -1}),
        ("transformer", {"attention_head_dim": [16]}),
    ],
)
def test_settings_that_a_library_cannot_build_from_are_our_error(model, part, values):
    change(model / part / "config.json", **values)
    assert_refused(OPENERS[part], model)


@pytest.mark.parametrize("values", [{"size": 7}, {"patch_size": "x"}, {"image_mean": {}}, {"image_processor_type": 3}])
def test_a_damaged_image_processor_is_our_error_or_still_one(model, values):
    change(model / "text_processor" / "preprocessor_config.json", **values)
    try:
        assert image_processor(model / "text_processor") is not None
    except ModelError as error:
        assert str(model / "text_processor") in str(error)


@pytest.mark.parametrize("place", ["tokenizer/tokenizer_config.json", "text_processor/preprocessor_config.json"])
def test_code_of_a_folder_is_neither_run_nor_asked_about(model, place, monkeypatch, capfd):
    """transformers would ask on the terminal, and run the file after a y."""
    path = model / place
    (path.parent / "evil.py").write_text(
        f"open({str(model / 'ran')!r}, 'w')\nclass Evil:\n    pass\n", encoding="utf-8"
    )
    names = {"AutoTokenizer": ["evil.Evil", None], "AutoImageProcessor": "evil.Evil"}
    change(path, auto_map=names, tokenizer_class="Evil", image_processor_type="Evil")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert_refused(open_text_encoder, model, "asks to run Python code")
    for read in (load_tokenizer, image_processor):
        if read.__name__.endswith(path.parent.name[-9:]):
            with pytest.raises(ModelError, match="auto_map"):
                read(path.parent)
    assert not (model / "ran").exists()
    assert "y/N" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "error", [Exception("BPE"), KeyError("a"), RecursionError(), OSError(2, "no"), ImportError("x")]
)
def test_whatever_a_library_raises_is_our_error(tmp_path, error):
    with pytest.raises(ModelError) as raised:
        with reading(tmp_path):
            raise error
    assert str(tmp_path) in str(raised.value) and raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        LoraFileError("ours"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        KeyboardInterrupt(),
    ],
)
def test_what_is_no_damage_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        with reading(tmp_path):
            raise error
    assert raised.value is error


def test_a_long_reason_is_cut(tmp_path):
    with pytest.raises(ModelError) as raised:
        with reading(tmp_path):
            raise RuntimeError("word\n" * 10_000)
    assert len(str(raised.value)) < LONGEST_REASON + len(str(tmp_path)) + 200
