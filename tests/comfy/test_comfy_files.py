"""Single files in a real ComfyUI's model folders: offered in LoadLongCat's lists, and checked when chosen."""

import pytest
from comfyui_longcat.training.weights import single_file

pytestmark = pytest.mark.comfy

TRANSFORMER = "longcat_image_edit_bf16.safetensors"


def offered(server, kind: str) -> list[str]:
    return server.get("/object_info/LoadLongCat")["LoadLongCat"]["input"]["optional"][f"{kind}_file"][0]


def graph(**choice) -> dict:
    required = {
        "model_family": "longcat_image",
        "model_flavour": "edit",
        "pretrained_model_name_or_path": "auto",
        "base_model_precision": "bf16",
    }
    return {
        "1": {"class_type": "LoadLongCat", "inputs": required | choice},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def editing_graph() -> dict:
    size = {"width": 64, "height": 64}
    reference = {"width": 80, "height": 64, "batch_size": 1, "color": 0x3366CC}
    prompt = {"model": ["1", 0], "reference": ["2", 0], "prompt": "make it red", "negative_prompt": "", **size}
    sampling = {"num_inference_steps": 2, "guidance_scale": 4.5, "seed": 1, **size}
    wired = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 1]}
    return {
        "1": graph()["1"],
        "2": {"class_type": "EmptyImage", "inputs": reference},
        "3": {"class_type": "EncodeEditPrompt", "inputs": prompt},
        "4": {"class_type": "LongCatSampleEdit", "inputs": wired | sampling},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "single"}},
    }


def test_files_in_the_model_folders_are_offered_and_checked(server, single_file_twins):
    from diffusers import LongCatImageTransformer2DModel

    models = server.base / "models"
    assert offered(server, "transformer") == ["auto"]
    file = models / "diffusion_models" / "longcat" / TRANSFORMER
    size = {"num_attention_heads": 1, "joint_attention_dim": 128, "pooled_projection_dim": 128}
    single_file.export_transformer(LongCatImageTransformer2DModel(num_layers=1, num_single_layers=1, **size), file)
    name = f"longcat/{TRANSFORMER}"
    assert offered(server, "transformer") == ["auto", name]

    for choice in ({}, {"transformer_file": name}):
        error = server.error_of(server.wait(server.queue(graph(**choice))))
        assert f"ae.safetensors in {models / 'vae'}" in error
        assert f"qwen_2.5_vl_7b_fp8_scaled.safetensors in {models / 'text_encoders'}" in error

    for folder, part in (("vae", "ae.safetensors"), ("text_encoders", "qwen_2.5_vl_7b.safetensors")):
        (models / folder).mkdir(exist_ok=True)
        (models / folder / part).symlink_to(file)
    assert (offered(server, "vae"), offered(server, "text_encoder")) == (
        ["auto", "ae.safetensors"],
        ["auto", "qwen_2.5_vl_7b.safetensors"],
    )
    # The tokenizer has been found in ComfyUI itself by then.
    error = server.error_of(server.wait(server.queue(graph(vae_file="ae.safetensors"))))
    assert "ae.safetensors holds a transformer; a vae is needed here" in error
    refused = server.post("/prompt", {"prompt": graph(text_encoder_file="gone.safetensors")})
    assert [error["type"] for error in refused["node_errors"]["1"]["errors"]] == ["value_not_in_list"]

    # As a user would mend it; the next run of the same graph sees the new files.
    file.unlink()
    for folder, kind in (("diffusion_models", "transformer"), ("vae", "vae"), ("text_encoders", "text_encoder")):
        for part in (single_file_twins / "files" / kind).iterdir():
            (models / folder / part.name).unlink(missing_ok=True)
            (models / folder / part.name).symlink_to(part)
    server.run(editing_graph())
    assert (server.base / "output" / "single_00001_.png").stat().st_size > 100
