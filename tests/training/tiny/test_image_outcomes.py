"""What the shipped image twins can do, sampled by the product's own code from seeds and looks they never saw.

A wrong sign, position, scale or timestep anywhere between prompt and picture ends in one of these numbers.
"""

import json

import pytest
from comfyui_longcat.tests.twins import scores
from comfyui_longcat.tests.twins.loading import open_twin
from comfyui_longcat.training.files import sha256_of_file
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.tiny.classifier import psnr
from comfyui_longcat.training.tiny.edits import KNOWN
from comfyui_longcat.training.weights.spec import ModelSpec
from comfyui_longcat.training.weights.twins import MARK, PARTS, TWINS, is_outdated, write_twin

SEED = 2026
"""Neither the trainings nor the recorded scores use it."""

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")

    def open_flavour(name: str):
        folder = models / name
        write_twin(folder)
        config = ModelConfig(model_flavour=name, base_model_precision="fp32")
        return open_twin(ModelSpec(config=config, models_dirs=(models,), folder=folder))

    return open_flavour


@pytest.fixture(scope="module")
def drawn(opened):
    """24 captions of looks never trained on, in both languages, and what the twin draws: guidance 2, 20 steps."""
    wanted = scores.unseen_captions(24, SEED)
    assert {caption.isascii() for _, caption in wanted} == {True, False}
    with opened("tiny") as twin:
        samples = scores.draw_captions(twin, [caption for _, caption in wanted], guidance=2.0, seed=SEED)
    return [look for look, _ in wanted], samples


def test_pictures_show_what_captions_never_trained_on_say(drawn):
    wanted, samples = drawn

    result = scores.score_pictures(samples, wanted)

    assert result.colour_and_shape >= 0.91
    assert result.background_and_position >= 0.95


def test_pictures_do_not_show_what_other_captions_say(drawn):
    wanted, samples = drawn

    result = scores.score_pictures(samples, [*wanted[7:], *wanted[:7]])

    assert result.colour_and_shape <= 0.4
    assert result.background_and_position <= 0.4


@pytest.fixture(scope="module")
def edited(opened):
    """For each kind of edit: 6 references never trained on with their targets, and what the twin makes of them."""
    with opened("tiny-edit") as twin:
        results = {}
        for kind in KNOWN:
            _, edits = scores.unseen_edits(kind, 6, SEED)
            results[kind] = edits, scores.draw_instructions(twin, edits.instructions, edits.references, 1.0, SEED)
    return results


@pytest.mark.parametrize("kind", KNOWN)
def test_edits_of_pictures_never_trained_on_reach_their_target(edited, kind):
    edits, samples = edited[kind]

    reached, unedited = (psnr(pixels, edits.targets).mean().item() for pixels in (samples, edits.references))
    print(f"{reached:.1f} dB, unedited {unedited:.1f} dB")
    assert reached >= 26
    # A dot is small: leaving the picture as it is comes to 24 dB.
    assert reached >= unedited + 4


@pytest.mark.parametrize("name", PARTS)
def test_a_written_twin_is_whole_and_known_by_its_weights(tmp_path, name):
    folder = tmp_path / name
    write_twin(folder)

    recorded = json.loads((folder / MARK).read_text(encoding="utf-8"))

    assert recorded == {path: sha256_of_file(TWINS / path) for path in recorded}
    assert {path.partition("/")[0] for path in recorded} == set(PARTS[name])
    assert not is_outdated(folder)
    config = folder / "text_encoder" / "config.json"
    settings = config.read_bytes()
    config.write_bytes(settings[:-1])
    assert is_outdated(folder)
    config.write_bytes(settings)
    (folder / MARK).write_text('{"builder": 4}', encoding="utf-8")
    assert is_outdated(folder)
    (folder / MARK).unlink()
    assert not is_outdated(folder)


def test_the_twins_stay_small():
    sizes = {
        name: sum(path.stat().st_size for part in parts for path in (TWINS / part).rglob("*.safetensors"))
        for name, parts in PARTS.items()
    }
    shipped = sum(path.stat().st_size for path in TWINS.rglob("*") if path.is_file())

    assert all(size <= 6 * MEGABYTE for size in sizes.values()), sizes
    assert shipped <= 16 * MEGABYTE


def test_the_model_card_has_the_numbers_of_the_record():
    card = (TWINS / "README.md").read_text(encoding="utf-8").replace(",", "")
    record = json.loads((TWINS / "record.json").read_text(encoding="utf-8"))
    for stage, values in record.items():
        for name in ("seed", "steps", "cpu_seconds", *(name for name in values if name.startswith("psnr_"))):
            numbers = values.get(name, [])
            for number in numbers if isinstance(numbers, list) else [numbers]:
                assert str(number) in card, (stage, name)
