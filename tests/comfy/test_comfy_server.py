"""The pack in a real ComfyUI on the CPU, over HTTP: loading, training, sampling, interrupting, resuming, refusing."""

import asyncio
import json
import re
import time

import pytest
from comfyui_longcat.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

pytestmark = pytest.mark.comfy

PREVIEW_EVENT, TEXT_EVENT = 1, 3
"""Kinds of binary messages (ComfyUI: protocol.py)."""


class Graph:
    """An API graph; links are (node, output number)."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict] = {}

    def add(self, class_type: str, **inputs) -> str:
        if class_type in NODE_CLASS_MAPPINGS:
            declared = NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()["required"]
            defaults = {name: settings["default"] for name, (_, settings) in declared.items() if "default" in settings}
            inputs = defaults | inputs
        node_id = str(len(self.nodes) + 1)
        links = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.nodes[node_id] = {"class_type": class_type, "inputs": links}
        return node_id


def training_graph(run_name: str, steps: int, sample: bool = False, validate: bool = False, **changes) -> dict:
    graph = Graph()
    model = (graph.add("LoadLongCat", model_flavour="tiny-edit", base_model_precision="fp32"), 0)
    kinds = {"targets": ("image", "textfile"), "references": ("conditioning", "none")}
    sides = {
        side: (
            graph.add(
                "LongCatDataset",
                instance_data_dir=f"longcat-example/{side}",
                id=side,
                dataset_type=kind,
                caption_strategy=captions,
                resolution=64,
            ),
            0,
        )
        for side, (kind, captions) in kinds.items()
    }
    pairs = graph.add("PairDatasets", **sides)
    latents = graph.add("CacheVAELatents", model=model, pairs=(pairs, 0))
    cache = graph.add("LongCatCacheText", model=model, cache=(latents, 0))
    optional = {}
    if validate:
        plan = {"validation_steps": 4, "validation_num_inference_steps": 2, "validation_resolution": "64x64"}
        optional["validation"] = (graph.add("LongCatValidation", num_samples=1, **plan), 0)
    training = {"max_train_steps": steps, "learning_rate": 1e-3, "lora_rank": 4} | changes
    train = graph.add("TrainLoRA", model=model, cache=(cache, 0), run_name=run_name, **training, **optional)
    graph.add("PreviewAny", source=(train, 1))
    if sample:
        _add_sampling(graph, model, pairs, train)
    return graph.nodes


def _add_sampling(graph: Graph, model: tuple, pairs: str, train: str) -> None:
    graph.add("PreviewImage", images=(pairs, 1))
    graph.add("PreviewImage", images=(train, 3))
    graph.add("PreviewImage", images=(train, 4))
    graph.add("LossGraphNode", loss=(train, 2), filename_prefix="loss")
    trained = (graph.add("LongCatLoadLoRA", model=model, lora=(train, 0)), 0)
    reference = (graph.add("EmptyImage", width=80, height=64, batch_size=1, color=0x3366CC), 0)
    prompt = graph.add(
        "EncodeEditPrompt", model=trained, reference=reference, prompt="make it red", width=80, height=64
    )
    picture = graph.add(
        "LongCatSampleEdit", model=trained, positive=(prompt, 0), negative=(prompt, 1), num_inference_steps=3
    )
    graph.add("SaveImage", images=(picture, 0), filename_prefix="edited")


def another_graph() -> dict:
    graph = Graph()
    graph.add("PreviewImage", images=(graph.add("EmptyImage", width=16, height=16, batch_size=1, color=0), 0))
    return graph.nodes


def lora_file(server, name: str):
    return server.base / "models" / "loras" / f"{name}.safetensors"


def events_of(server, run: str) -> list[dict]:
    file = server.base / "output" / "longcat" / run / "events.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def steps_of(server, run: str) -> list[dict]:
    return [event for event in events_of(server, run) if "loss" in event]


def test_pack_loads_without_complaint(server):
    log = server.log.read_text(encoding="utf-8")
    seconds = re.search(r"([\d.]+) seconds( \(IMPORT FAILED\))?: .*ComfyUI-LongCat", log)
    print(f"import time as ComfyUI prints it: {seconds.group(1)} s")
    assert seconds.group(2) is None


def test_every_node_is_offered_with_its_declaration(server):
    offered = server.get("/object_info")
    for node_id, node in NODE_CLASS_MAPPINGS.items():
        assert offered[node_id]["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[node_id]
        assert offered[node_id]["category"] == node.CATEGORY
        assert offered[node_id]["input"].keys() == node.INPUT_TYPES().keys()
    assert offered["TrainLoRA"]["output_node"] is True


def test_graph_trains_and_samples(server):
    outputs = server.run(training_graph("whole", 8, sample=True, validate=True))
    assert lora_file(server, "whole").stat().st_size > 1000
    pictures = [image for output in outputs.values() for image in output.get("images", [])]
    # Contact sheet, loss curve, samples twice (TrainLoRA shows them too), core's loss graph, the edited picture.
    assert len(pictures) >= 6
    for image in pictures:
        assert (server.base / image["type"] / image["subfolder"] / image["filename"]).stat().st_size > 100
    assert (server.base / "output" / "edited_00001_.png").is_file()
    path = next(output["text"][0] for output in outputs.values() if "whole.safetensors" in str(output.get("text")))
    assert str(lora_file(server, "whole")) in path


def test_trained_lora_is_listed_and_can_be_chosen(server):
    graph = Graph()
    model = (graph.add("LoadLongCat", model_flavour="tiny-edit"), 0)
    chosen = (graph.add("LongCatLoadLoRA", model=model, lora_name="missing.safetensors"), 0)
    graph.add("PreviewAny", source=chosen)
    refused = server.post("/prompt", {"prompt": graph.nodes})
    assert "value_not_in_list" in json.dumps(refused)
    assert (
        "whole.safetensors"
        in server.get("/object_info/LongCatLoadLoRA")["LongCatLoadLoRA"]["input"]["required"]["lora_name"][0]
    )


def test_interrupted_run_resumes_to_the_same_lora(server):
    steps = 200
    server.run(training_graph("straight", steps))
    prompt_id = server.queue(training_graph("broken", steps))
    end = time.monotonic() + 60
    while len(steps_of(server, "broken")) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    server.post("/interrupt", {})
    entry = server.wait(prompt_id)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]], entry["status"]
    assert not lora_file(server, "broken").exists(), "the run ended before it could be interrupted"

    server.run(training_graph("broken", steps))
    assert any(event.get("resumed") for event in events_of(server, "broken"))
    losses = {event["step"]: event["loss"] for event in steps_of(server, "broken")}
    assert losses == {event["step"]: event["loss"] for event in steps_of(server, "straight")}
    assert len(losses) == steps
    assert lora_file(server, "broken").read_bytes() == lora_file(server, "straight").read_bytes()


def test_finished_run_returns_at_once_after_another_workflow(server):
    first = server.run(training_graph("done", 5))
    before = len(steps_of(server, "done"))
    server.run(another_graph())
    started = time.monotonic()
    again = server.run(training_graph("done", 5))
    seconds = time.monotonic() - started
    print(f"finished run queued again after another workflow: {seconds:.2f} s")
    assert len(steps_of(server, "done")) == before == 5
    assert again == first


def test_missing_reference_is_refused_by_the_queue(server):
    graph = Graph()
    model = (graph.add("LoadLongCat", model_flavour="tiny-edit"), 0)
    prompt = graph.add("EncodeEditPrompt", model=model, prompt="make it red")
    graph.add("PreviewAny", source=(prompt, 0))
    answer = server.post("/prompt", {"prompt": graph.nodes})
    errors = answer["node_errors"][prompt]["errors"]
    assert [(e["type"], e["extra_info"]["input_name"]) for e in errors] == [("required_input_missing", "reference")]


def test_folder_outside_the_allowed_roots_is_refused(server, tmp_path):
    graph = training_graph("outside", 1)
    graph["2"]["inputs"]["instance_data_dir"] = str(tmp_path)
    entry = server.wait(server.queue(graph))
    assert "outside the allowed folders" in server.error_of(entry)
    assert entry["status"]["status_str"] == "error"


def test_folders_that_the_owner_adds_are_allowed(server):
    from comfyui_longcat.training.tiny.examples import draw_example_pairs

    targets = server.base / "owner" / "by_variable" / "after"
    references = server.base / "owner" / "by_file" / "before"
    draw_example_pairs(targets, references, count=2)
    graph = training_graph("unused", 1)
    graph["2"]["inputs"]["instance_data_dir"] = str(targets)
    graph["3"]["inputs"]["instance_data_dir"] = str(references)
    only_pairs = {name: graph[name] for name in "234"}
    only_pairs["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}}
    outputs = server.run(only_pairs)
    assert outputs["5"]["text"][0].startswith("2 pairs in 1 bucket")


def test_progress_reaches_the_browser(server):
    aiohttp = pytest.importorskip("aiohttp")
    graph = training_graph("watched", 12, validate=True)
    train = next(name for name, node in graph.items() if node["class_type"] == "TrainLoRA")

    async def watch() -> tuple[list[dict], list[bytes]]:
        messages, binary = [], []
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=watcher") as page:
            await session.post(f"{server.url}/prompt", json={"prompt": graph, "client_id": "watcher"})
            async for message in page:
                if message.type == aiohttp.WSMsgType.BINARY:
                    binary.append(message.data)
                else:
                    messages.append(json.loads(message.data))
                if messages and messages[-1]["type"] in ("execution_success", "execution_error"):
                    return messages, binary

    messages, binary = asyncio.run(asyncio.wait_for(watch(), 120))
    assert messages[-1]["type"] == "execution_success"
    states = [message["data"] for message in messages if message["type"] == "longcat.run"]
    assert [data["state"] for data in states if data["state"] != "samples"] == ["started", "finished"]
    assert any(data["state"] == "samples" for data in states)
    steps = [message["data"] for message in messages if message["type"] == "longcat.step"]
    assert {(data["node"], data["run"], data["total"]) for data in steps} == {(train, "watched", 12)}
    assert steps[-1]["step"] == 12 and steps[-1].keys() >= {"loss", "learning_rate", "seconds"}
    texts = [data[4:].decode(errors="replace") for data in binary if int.from_bytes(data[:4], "big") == TEXT_EVENT]
    assert any(re.search(r"step 12/12 \| loss \d\.\d{4} \| [\d.]+ s/it \| eta 0:00:00", text) for text in texts)
    pictures = [data for data in binary if int.from_bytes(data[:4], "big") == PREVIEW_EVENT]
    assert pictures and all(data[8:10] == b"\xff\xd8" for data in pictures), "previews are JPEG"
