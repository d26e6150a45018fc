"""The LoRA nodes: names are checked, conversions land below models/loras, and chains keep their order."""

import pytest
import torch
from comfyui_longcat.nodes.lora import LongCatConvertLoRA, LongCatLoadLoRA
from comfyui_longcat.nodes.types import TrainedLora
from comfyui_longcat.training.errors import ConfigError, LoraFileError
from comfyui_longcat.training.loop.stages import RealStages
from comfyui_longcat.training.lora.families import IMAGE, VIDEO
from comfyui_longcat.training.lora.file import read_lora
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.spec import LoraUse, ModelSpec
from safetensors.torch import save_file

MODULE = "transformer_blocks.0.attn.to_q"


@pytest.fixture
def lora(host):
    """An OneTrainer file below models/loras."""
    generator = torch.Generator().manual_seed(0)
    name = "lora_transformer_" + MODULE.replace(".", "_")
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, 32, generator=generator),
        f"{name}.lora_up.weight": torch.randn(32, 4, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }
    (host.home / "loras").mkdir()
    save_file(tensors, host.home / "loras" / "cats.safetensors")
    return host.home / "loras" / "cats.safetensors"


@pytest.mark.parametrize("layout", IMAGE.layouts)
def test_converts_a_file_of_the_list(host, lora, layout):
    answer = LongCatConvertLoRA().convert("cats.safetensors", layout, "")
    converted, path = answer["result"]
    at = "cats-peft/adapter_model" if layout == "peft" else f"cats-{layout}"
    assert path == str(converted.path) == str(host.home / "loras" / f"{at}.safetensors")
    assert answer["ui"] == {"text": [path]}
    wanted, found = read_lora(lora)[MODULE], read_lora(converted.path)[MODULE]
    torch.testing.assert_close(found.b @ found.a, wanted.b @ wanted.a, rtol=0, atol=1e-6)


@pytest.fixture
def video_lora(host):
    """A file of WanVideoWrapper's kind below models/loras."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"diffusion_model.blocks.0.self_attn.{part}.{end}": torch.randn(shape, generator=generator)
        for part in "qkv"
        for end, shape in (("lora_A.weight", (4, 32)), ("lora_B.weight", (32, 4)))
    }
    (host.home / "loras").mkdir()
    save_file(tensors, host.home / "loras" / "waves.safetensors")
    return host.home / "loras" / "waves.safetensors"


@pytest.mark.parametrize("layout", VIDEO.layouts)
def test_the_file_tells_that_it_is_of_the_video_model(video_lora, layout):
    converted, _ = LongCatConvertLoRA().convert("waves.safetensors", layout, "")["result"]
    (wanted,), (found,) = read_lora(video_lora).values(), read_lora(converted.path).values()
    torch.testing.assert_close(found.b @ found.a, wanted.b @ wanted.a, rtol=0, atol=1e-6)


def test_a_layout_of_the_other_model_is_refused(lora, host):
    with pytest.raises(
        ConfigError, match="LongCat-Image, for which there is no layout 'official'; choose one of portable"
    ):
        LongCatConvertLoRA().convert("cats.safetensors", "official", "")
    assert [path.name for path in lora.parent.iterdir()] == ["cats.safetensors"]


def test_every_layout_can_be_chosen():
    (choices, _) = LongCatConvertLoRA.INPUT_TYPES()["required"]["layout"]
    assert set(choices) == {*IMAGE.layouts, *VIDEO.layouts}


def test_a_folder_that_peft_saved_is_called_by_its_own_name(host, lora):
    folder, _ = LongCatConvertLoRA().convert("cats.safetensors", "peft", "dogs")["result"]
    _, path = LongCatConvertLoRA().convert("none", "kohya", "", lora=folder)["result"]
    assert path == str(host.home / "loras" / "dogs-kohya.safetensors")
    model = RealStages(spec=ModelSpec(config=ModelConfig(model_flavour="tiny-edit"), models_dirs=host.models))
    (stacked,) = LongCatLoadLoRA().load(model, "cats.safetensors", 0.5)
    (stacked,) = LongCatLoadLoRA().load(stacked, "dogs/adapter_model.safetensors", -1.0)
    assert stacked.spec.loras == (LoraUse(path=lora, strength=0.5), LoraUse(path=folder.path, strength=-1.0))


def test_a_taken_name_gets_a_number(host, lora):
    (host.home / "loras" / "mine.safetensors").write_bytes(b"of somebody else")
    _, path = LongCatConvertLoRA().convert("cats.safetensors", "native", " mine.safetensors ")["result"]
    assert path == str(host.home / "loras" / "mine-2.safetensors")
    assert (host.home / "loras" / "mine.safetensors").read_bytes() == b"of somebody else"


def test_the_connected_lora_goes_before_the_name(host, lora):
    copy = lora.rename(host.home / "trained.safetensors")
    trained = TrainedLora(path=copy, folder=host.home)
    _, path = LongCatConvertLoRA().convert("cats.safetensors", "portable", "", lora=trained)["result"]
    assert path == str(host.home / "loras" / "trained-portable.safetensors")


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ".", "CON", "x\0"])
def test_a_name_that_leads_elsewhere_is_refused(host, lora, name):
    with pytest.raises(ConfigError, match="LongCatConvertLoRA.output_name"):
        LongCatConvertLoRA().convert("cats.safetensors", "peft", name)
    assert [path.name for path in lora.parent.iterdir()] == ["cats.safetensors"]


@pytest.mark.parametrize("name", ["missing.safetensors", "../secret.safetensors", "/etc/hostname"])
def test_a_lora_outside_the_folder_or_missing_is_refused(host, lora, name):
    (host.home / "secret.safetensors").write_bytes(b"")
    with pytest.raises(LoraFileError, match="LongCatConvertLoRA.lora_name is .*no such file below"):
        LongCatConvertLoRA().convert(name, "portable", "")


def test_nothing_chosen_is_refused(host):
    with pytest.raises(LoraFileError, match="lora_name is 'none' and no lora is connected"):
        LongCatConvertLoRA().convert("none", "portable", "")


def test_a_changed_file_is_converted_again(host, lora):
    before = LongCatConvertLoRA.IS_CHANGED(lora_name="cats.safetensors", layout="peft")
    lora.write_bytes(lora.read_bytes() + b"\0")
    assert LongCatConvertLoRA.IS_CHANGED(lora_name="cats.safetensors", layout="peft") != before


@pytest.mark.parametrize("linked", ["cats.safetensors", "adapter_config.json"])
def test_a_link_that_leads_out_of_the_allowed_folders_is_refused(host, lora, tmp_path_factory, linked):
    outside = tmp_path_factory.mktemp("outside")
    link, target = lora.parent / linked, outside / linked
    target.write_bytes(link.read_bytes() if link.exists() else b"{}")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    for refused in (
        lambda: LongCatConvertLoRA().convert("cats.safetensors", "native", ""),
        lambda: LongCatLoadLoRA().load(
            RealStages(spec=ModelSpec(config=ModelConfig(), models_dirs=())), "cats.safetensors", 1.0
        ),
    ):
        with pytest.raises(LoraFileError, match=f"{linked} is a link that leads out of the allowed folders"):
            refused()


def test_a_name_that_is_too_long_is_no_file_of_the_list(host, lora):
    with pytest.raises(LoraFileError, match="no such file"):
        LongCatConvertLoRA().convert("x" * 5000, "native", "")
