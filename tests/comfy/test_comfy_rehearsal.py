"""Load LongCat's rehearsal in a real ComfyUI: the shipped graph on a user's own folder, and back to the real run."""

import copy
import json

import pytest
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture
def graph(server, repository):
    """The shipped edit training, on three pairs of a user of which one cannot be read."""
    mine = server.base / "input" / "mine"
    for side in ("after", "before"):
        (mine / side).mkdir(parents=True, exist_ok=True)
        for name in "abc":
            Image.effect_noise((800, 600), 90).convert("RGB").save(mine / side / f"{name}.png")
            (mine / "after" / f"{name}.txt").write_text(f"instruction {name}")
    broken = mine / "before" / "b.png"
    broken.write_bytes(broken.read_bytes()[:9000])
    workflow = repository / "workflows" / "api" / "longcat_image_edit_train.json"
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    graph["2"]["inputs"]["instance_data_dir"] = "mine/after"
    graph["3"]["inputs"]["instance_data_dir"] = "mine/before"
    return graph


def named(graph, class_type):
    return next((node_id, node["inputs"]) for node_id, node in graph.items() if node["class_type"] == class_type)


def test_rehearsal_then_the_real_run(server, graph):
    named(graph, "LoadLongCat")[1]["rehearsal"] = True
    train, inputs = named(graph, "TrainLoRA")
    outputs = server.run(graph)
    (report,) = outputs[train]["report"]
    for words in ("Your 2 pairs, captions, caches, training (8 steps)", "b.png cannot be read", "1000 of batch 1"):
        assert words in report
    assert len(outputs[train]["images"]) == 2
    loras = server.base / "models" / "loras"
    assert not list(loras.glob(f"{inputs['run_name']}*"))
    assert not (server.base / "output" / "longcat" / inputs["run_name"]).exists()

    real = copy.deepcopy(graph)
    named(real, "LoadLongCat")[1].update(rehearsal=False, model_flavour="tiny-edit", base_model_precision="bf16")
    entry = server.wait(server.queue(real))
    # Pair Datasets is remembered from the rehearsal: it shows its fault again, and the stage after it refuses.
    error = server.error_of(entry)
    assert "Found by Pair Datasets" in error and "b.png cannot be read" in error
    pairs, _ = named(real, "PairDatasets")
    assert "b.png cannot be read" in entry["outputs"][pairs]["report"][0]
