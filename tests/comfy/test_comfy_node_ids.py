"""Packs that have node ids of ours, in a real ComfyUI: its log names the ids and the pack, whichever comes last."""

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


NODE_CLASS_MAPPINGS = {{"{node_id}": Other}}
"""

TAKEN = ("TrainLoRA", "PairDatasets", "SampleI2V", "EncodeEditPrompt", "CacheVAELatents", "LoadLongCat")


def test_every_clash_is_named_in_the_log(start, tmp_path):
    # ComfyUI loads packs in the order in which the file system lists them.
    (tmp_path / "custom_nodes").mkdir()
    for node_id in TAKEN:
        (tmp_path / "custom_nodes" / f"has_{node_id}.py").write_text(PACK.format(node_id=node_id), encoding="utf-8")
    with start(tmp_path) as server:
        offered = server.get("/object_info")
        lines = [line for line in server.log_end(400).splitlines() if "have the same ids" in line]
    assert len(lines) == len(TAKEN)
    for node_id in TAKEN:
        (line,) = (line for line in lines if f"ids: {node_id}." in line)
        ours = offered[node_id]["category"].startswith("LongCat/")
        pack = f"custom_nodes.has_{node_id}"
        first, last = (pack, "ComfyUI-LongCat") if ours else ("ComfyUI-LongCat", pack)
        assert f"{last} replaces nodes of {first}, which" in line
