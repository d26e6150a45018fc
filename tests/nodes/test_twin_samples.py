"""What the nodes draw with the trained twins, read by the classifier: the whole way from widget to picture."""

import pytest
import torch
from comfyui_longcat.nodes.encode import EncodeEditPrompt, LongCatEncodePrompt
from comfyui_longcat.nodes.images import image_to_clip, pixels_to_image, to_image
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.sample import LongCatSampleEdit, LongCatSampleT2I, LongCatSampleT2V, SampleI2V
from comfyui_longcat.training.tiny.captions import picture_captions
from comfyui_longcat.training.tiny.classifier import psnr, read_directions, read_pictures
from comfyui_longcat.training.tiny.edits import KNOWN, draw_edits
from comfyui_longcat.training.tiny.examples import draw_moves
from comfyui_longcat.training.tiny.world import SIDE, looks, place_scenes

SIZE = {"width": SIDE, "height": SIDE}
SAMPLING = SIZE | {"num_inference_steps": 20, "seed": 5}

UNSEEN = [look for look in looks(held_out=True) if look.position == "middle"]
"""No twin was trained on them."""


@pytest.fixture(scope="module")
def load(module_host, tmp_path_factory):
    """Loads a flavour as a user does who has no model folders."""
    module_host.models = (tmp_path_factory.mktemp("models"),)

    def loaded(family: str, flavour: str):
        return LoadLongCat().load(
            model_family=family,
            model_flavour=flavour,
            pretrained_model_name_or_path="auto",
            base_model_precision="fp32",
        )[0]

    return loaded


def generator():
    return torch.Generator().manual_seed(11)


def seen(clip: torch.Tensor) -> torch.Tensor:
    """Pixels [1, 3, F, H, W] -> [F, 3, H, W]."""
    return clip[0].movedim(1, 0)


def test_pictures_are_drawn_as_prompts_in_both_languages_say(load):
    model = load("longcat_image", "tiny")
    right = []
    for look, wording in zip(UNSEEN[:5], (0, 1, 2, 3, 4), strict=True):
        encoded = LongCatEncodePrompt().encode(model, picture_captions(look)[wording], "")
        image, _ = LongCatSampleT2I().sample(model, *encoded, **SAMPLING, guidance_scale=2.0, cfg_renorm=True)
        (reading,) = read_pictures(seen(image_to_clip(image)))
        right.append(reading.shows(look))
    assert sum(right) >= 4, right


@pytest.mark.parametrize("kind", KNOWN)
def test_pictures_are_edited_as_instructions_say(load, kind):
    model = load("longcat_image", "tiny-edit")
    chosen = UNSEEN[2:3]
    edit = draw_edits(kind, chosen, place_scenes(chosen, generator()), generator())
    (instruction,) = edit.instructions
    encoded = EncodeEditPrompt().encode(model, pixels_to_image(edit.references), instruction, "", **SIZE)
    image, _ = LongCatSampleEdit().sample(model, *encoded, **SAMPLING, guidance_scale=1.0)
    near, untouched = psnr(seen(image_to_clip(image)), edit.targets).item(), psnr(edit.references, edit.targets).item()
    print(f"{instruction}: {near:.1f} dB, the reference as it is {untouched:.1f} dB")
    assert near >= 22
    assert near > untouched + 3


def clip_of(model, node, caption, **start):
    """Pixels [1, 3, F, H, W]."""
    encoded = LongCatEncodePrompt().encode(model, caption, "")
    settings = SAMPLING | {"num_frames": 9, "guidance_scale": 2.0, "distilled": False}
    return image_to_clip(node().sample(model, *encoded, **settings, **start)[0])


def test_clips_begin_with_the_picture_and_go_where_the_prompt_says(load):
    model, ways = load("longcat_video", "tiny-video"), ("right", "left", "down")
    clips = []
    for _, frames, caption in draw_moves(3, directions=ways, unseen=True):
        start = to_image(frames[:1])
        clips.append(clip_of(model, SampleI2V, caption, start_frame=start))
        assert psnr(clips[-1][:, :, 0], image_to_clip(start)[:, :, 0]).item() > 24
        first, last = read_pictures(seen(clips[-1])[[0, -1]])
        assert (first.colour, first.background) == (last.colour, last.background)
    assert read_directions(torch.cat(clips)) == list(ways)


def test_clips_from_words_alone_move_as_told(load):
    model, ways = load("longcat_video", "tiny-video"), ("right", "left", "still")
    captions = [caption for _, _, caption in draw_moves(3, directions=ways, unseen=True)]
    read = read_directions(torch.cat([clip_of(model, LongCatSampleT2V, caption) for caption in captions]))
    assert sum(a == b for a, b in zip(read, ways, strict=True)) >= 2, read
