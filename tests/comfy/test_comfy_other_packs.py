"""Beside other packs in a real ComfyUI: those that have node ids of ours, and one whose pictures no memory holds."""

import pytest

pytestmark = pytest.mark.comfy

PACK = """
class Other:
    CATEGORY = "other"
    FUNCTION = "run"
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return ()


NODE_CLASS_MAPPINGS = {"NODE_ID": Other}
"""

HUGE = """
import torch


class HugeImage:
    CATEGORY = "other"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (torch.zeros(1, 1, 1, 3).expand(1, 2**22, 2**22, 3),)


NODE_CLASS_MAPPINGS = {"HugeImage": HugeImage}
"""

TAKEN = ("TrainLoRA", "PairDatasets", "SampleI2V", "LongCatCacheText", "CacheVAELatents", "LongCatSampleT2I")


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    packs = base / "custom_nodes"
    packs.mkdir()
    (packs / "huge.py").write_text(HUGE, encoding="utf-8")
    # ComfyUI loads packs in the order in which the file system lists them.
    for node_id in TAKEN:
        (packs / f"has_{node_id}.py").write_text(PACK.replace("NODE_ID", node_id), encoding="utf-8")
    with start(base) as server:
        yield server


def test_every_clash_is_named_in_the_log(server):
    offered = server.get("/object_info")
    lines = [line for line in server.log_end(400).splitlines() if "have the same ids" in line]
    assert len(lines) == len(TAKEN)
    for node_id in TAKEN:
        (line,) = (line for line in lines if f"ids: {node_id}." in line)
        ours = offered[node_id]["category"].startswith("LongCat/")
        pack = f"custom_nodes.has_{node_id}"
        first, last = (pack, "ComfyUI-LongCat") if ours else ("ComfyUI-LongCat", pack)
        assert f"{last} replaces nodes of {first}, which" in line


def test_too_little_memory_is_a_sentence_in_comfyui_as_well(server):
    prompt = {"model": ["1", 0], "reference": ["2", 0], "prompt": "", "negative_prompt": "", "width": 64, "height": 64}
    choice = {"model_family": "longcat_image", "model_flavour": "tiny-edit", "base_model_precision": "fp32"}
    graph = {
        "1": {"class_type": "LoadLongCat", "inputs": choice | {"pretrained_model_name_or_path": "auto"}},
        "2": {"class_type": "HugeImage", "inputs": {}},
        "3": {"class_type": "EncodeEditPrompt", "inputs": prompt},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    error = server.error_of(server.wait(server.queue(graph)))
    assert error.startswith("Not enough memory (Encode Edit Prompt). What helps, in this order: base_model_precision")
