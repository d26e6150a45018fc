"""The trainings of the tiny twins: exact short cuts, schedules, and every stage once with few steps."""

import dataclasses

import pytest
import torch
from comfyui_longcat.tests.twins.learn import image, image_pool, image_vae, pads, text, training
from comfyui_longcat.tests.twins.loading import open_twin
from comfyui_longcat.tests.twins.scores import draw_captions, draw_instructions, unseen_edits
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.image.prompt import encode_prompt
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.checkpoint_files import read_config
from comfyui_longcat.training.weights.components import open_text_encoder
from comfyui_longcat.training.weights.spec import ModelSpec
from comfyui_longcat.training.weights.twins import TWINS, write_twin

TOTAL, KEPT = 512, 12


@pytest.fixture(scope="module")
def text_encoder(tiny_checkpoint):
    config = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(tiny_checkpoint.parent,), folder=tiny_checkpoint)
    with open_text_encoder(spec, torch.device("cpu"), NoCallbacks()) as text_encoder:
        yield text_encoder


def test_prompts_read_in_batches_are_those_of_the_product(text_encoder):
    prompts = ["a red circle on the left on a white background", "\u7ea2\u8272\u5706\u5f62", ""]

    short = image_pool.read_prompts(text_encoder, prompts)

    for rows, prompt in zip(short, prompts, strict=True):
        whole = encode_prompt(text_encoder, prompt, None)[0]
        torch.testing.assert_close(rows[:-1], whole[: len(rows) - 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(rows[-1:].expand(TOTAL - KEPT, -1), whole[KEPT:], atol=1e-5, rtol=0)


def test_instructions_read_in_batches_are_those_of_the_product(text_encoder):
    _, edits = unseen_edits("recolour", 3, seed=1)

    short = image_pool.read_instructions(text_encoder, edits.instructions, edits.references)

    for rows, instruction, reference in zip(short, edits.instructions, edits.references, strict=True):
        whole = encode_prompt(text_encoder, instruction, reference.unsqueeze(0))[0]
        torch.testing.assert_close(rows[:-1], whole[: len(rows) - 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(rows[-1], whole[-1], atol=1e-5, rtol=0)


def test_sampled_pads_stand_for_all_others():
    slots = pads.sample_slots(KEPT, TOTAL, progress=1.0, generator=torch.Generator().manual_seed(0))

    assert slots.places[:KEPT].tolist() == list(range(KEPT))
    assert len(set(slots.places.tolist())) == KEPT + pads.SAMPLED
    assert slots.bias[:KEPT].eq(0).all()
    assert slots.bias[KEPT:].exp().sum().item() == pytest.approx(TOTAL - KEPT, rel=1e-5)


def test_the_bias_is_faded_in():
    def bias_at(progress: float) -> float:
        return pads.sample_slots(KEPT, TOTAL, progress, torch.Generator().manual_seed(0)).bias.max().item()

    assert bias_at(0.0) == bias_at(pads.FADE_IN[0]) == 0
    assert 0 < bias_at(0.5) < bias_at(0.6) < bias_at(pads.FADE_IN[1]) == bias_at(1.0)


def test_few_biased_pads_give_what_all_pads_give():
    torch.manual_seed(0)
    transformer = image.build_transformer(shared_text_bias=True).eval()
    # Untrained, all gates are shut and nothing would depend on the pads.
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    processor = pads.use_biased_attention(transformer)
    prompt, pad = torch.randn(1, KEPT, 64), torch.randn(1, 1, 64)
    few = pads.sample_slots(KEPT, TOTAL, progress=1.0, generator=torch.Generator().manual_seed(0))
    latents, sigmas = torch.randn(1, 16, 8, 8), torch.tensor([0.5])

    def predict(slots: pads.Slots) -> torch.Tensor:
        embeds = torch.cat([prompt, pad.expand(-1, len(slots.places) - KEPT, -1)], dim=1)
        inputs = image._with_positions(embeds, None, slots, TOTAL, 8)
        # One place for all pads: only then is the short cut exact, otherwise it is right on average.
        positions = inputs.txt_ids.clone()
        positions[KEPT:] = positions[0]
        processor.bias = image._attention_bias(slots, inputs)
        with torch.no_grad():
            return LongCatImageFamily().predict(
                transformer, latents, sigmas, dataclasses.replace(inputs, txt_ids=positions)
            )

    everything = predict(pads.all_slots(TOTAL))

    torch.testing.assert_close(predict(few), everything, atol=1e-4, rtol=0)
    assert (predict(dataclasses.replace(few, bias=None)) - everything).abs().max() > 1e-2


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing():
    rates = [training.rate_at(step, 1000) for step in range(1001)]

    assert rates[0] == pytest.approx(1 / training.WARM_UP_STEPS)
    assert rates[100] == rates[600] == 1
    assert rates[800] == pytest.approx(0.5)
    assert rates[1000] == 0


def test_every_stage_runs_from_nothing_and_gives_twins_that_sample(tmp_path):
    said = []

    text.write_text_parts(tmp_path / "image", said.append)
    record = image_vae.train_image_vae(tmp_path / "image", said.append, steps=2)
    image.train_t2i(tmp_path, said.append, steps=2, examples=30)
    image.train_edit(tmp_path, said.append, steps=2, examples=30)

    assert record["steps"] == 2
    written, shipped = (read_config(twins / "image" / "text_encoder" / "config.json") for twins in (tmp_path, TWINS))
    # transformers 5 reads the first, transformers 4 the others.
    for name in ("rope_parameters", "rope_scaling", "rope_theta"):
        assert written["text_config"][name] == shipped["text_config"][name]
    assert any(line.startswith("step 00002/00002 | loss ") for line in said)
    for name in ("tiny", "tiny-edit"):
        with _opened(tmp_path, name) as twin:
            _, edits = unseen_edits("invert", 1, seed=0)
            if name == "tiny":
                pixels = draw_captions(twin, ["a red circle"], 1.0, seed=0, num_inference_steps=1)
            else:
                pixels = draw_instructions(twin, edits.instructions, edits.references, 1.0, 0, num_inference_steps=1)
            assert pixels.shape == (1, 3, 64, 64)
            assert pixels.isfinite().all()


def _opened(twins, name):
    folder = twins / "written" / name
    write_twin(folder, twins)
    config = ModelConfig(model_flavour=name, base_model_precision="fp32")
    return open_twin(ModelSpec(config=config, models_dirs=(folder.parent,), folder=folder))
