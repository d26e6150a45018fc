"""What a real ComfyUI draws with the trained twins, read by the classifier."""

import av
import pytest
import torch
from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.description import to_api
from comfyui_longcat.nodes.graph.sampling import Sampling, sampling_graph
from comfyui_longcat.nodes.lora import NO_LORA
from comfyui_longcat.training.data.media import read_image, to_pixels
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.tiny.captions import picture_captions
from comfyui_longcat.training.tiny.classifier import psnr, read_directions, read_pictures
from comfyui_longcat.training.tiny.examples import draw_moves, draw_pairs
from comfyui_longcat.training.tiny.world import SIDE, looks

pytestmark = pytest.mark.comfy

COUNT = 2
SETTINGS = {"width": SIDE, "height": SIDE, "num_inference_steps": 20}
UNSEEN = looks(held_out=True)


def sample(server, model: ModelConfig, samples: list[Sampling]) -> None:
    server.run(to_api(sampling_graph("twins", model, NO_LORA, samples), node_classes()))


def test_a_picture_shows_what_its_prompt_says(server):
    prompts = [picture_captions(UNSEEN[number])[wording] for number, wording in ((5, 0), (20, 3))]
    sample(
        server,
        ModelConfig(model_flavour="tiny", base_model_precision="fp32"),
        [Sampling(prompt=p, filename_prefix=f"t2i-{n}", guidance_scale=2.0, **SETTINGS) for n, p in enumerate(prompts)],
    )
    drawn = [to_pixels(read_image(server.base / "output" / f"t2i-{n}_00001_.png"), (SIDE, SIDE)) for n in range(COUNT)]
    right = [
        reading.shows(UNSEEN[number]) for reading, number in zip(read_pictures(torch.cat(drawn)), (5, 20), strict=True)
    ]
    assert right == [True] * COUNT


def test_an_edit_is_what_its_instruction_says(server):
    pairs = draw_pairs(COUNT, edit="recolour", unseen=True)
    for name, reference, _, _ in pairs:
        reference.save(server.base / "input" / f"{name}.png")
    sample(
        server,
        ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32"),
        [
            Sampling(prompt=text, picture=f"{name}.png", filename_prefix=f"edit-{name}", guidance_scale=1.0, **SETTINGS)
            for name, _, _, text in pairs
        ],
    )
    for name, reference, target, _ in pairs:
        edited = to_pixels(read_image(server.base / "output" / f"edit-{name}_00001_.png"), (SIDE, SIDE))
        before, wanted = (to_pixels(picture, (SIDE, SIDE)) for picture in (reference, target))
        assert psnr(edited, wanted).item() > max(22, psnr(before, wanted).item() + 3)


def test_a_clip_goes_where_its_prompt_says(server):
    ways = ("right", "down")
    samples = []
    for number, (_, frames, caption) in enumerate(draw_moves(COUNT, directions=ways, unseen=True)):
        frames[0].save(server.base / "input" / f"start-{number}.png")
        wired = {"picture": f"start-{number}.png", "filename_prefix": f"clip-{number}", "num_frames": 9}
        samples.append(Sampling(prompt=caption, guidance_scale=2.0, **wired, **SETTINGS))
    video = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    sample(server, video, samples)
    assert read_directions(torch.cat([clip_of(server, f"clip-{n}") for n in range(COUNT)])) == list(ways)


def clip_of(server, prefix: str) -> torch.Tensor:
    """Pixels [1, 3, F, H, W] of a saved video, -1..1."""
    with av.open(str(server.base / "output" / f"{prefix}_00001_.mp4")) as container:
        frames = [to_pixels(frame.to_image(), (SIDE, SIDE)) for frame in container.decode(video=0)]
    return torch.stack(frames, dim=2)
