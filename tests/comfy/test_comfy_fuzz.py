"""Prompts of random faults against a real ComfyUI: the server answers, every error has a sentence of ours, and nothing
outside the allowed folders is read or written.

The seeded prompts are the shipped workflows on the tiny twins, each cut at a node and with one to three faults.
FUZZ_PROMPTS=500 tries more of them (`make fuzz-http`); FUZZ_SEED another series.
"""

import copy
import hashlib
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from comfyui_longcat.nodes import NODES
from comfyui_longcat.nodes.graph.core_nodes import SAMPLE_PICTURE, draw_sample
from comfyui_longcat.nodes.graph.tiny import make_tiny
from comfyui_longcat.training import errors
from comfyui_longcat.training.files import write_safetensors
from PIL import Image
from PIL.PngImagePlugin import PngInfo

pytestmark = pytest.mark.comfy

PROMPTS = int(os.environ.get("FUZZ_PROMPTS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

CANARY = "canary-7f3a-that-nobody-may-see"

SECONDS_BEFORE_INTERRUPT = 30

OUR_ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type)}

PRECISIONS = ("base_model_precision", "text_encoder_1_precision")
"""Some compile an extension first; and no flavour is chosen that would be downloaded."""

HEAVY = {"TrainLoRA", "LongCatSampleEdit", "LongCatSampleT2I", "LongCatSampleT2V", "SampleI2V"}


@pytest.fixture(scope="module")
def outside(server) -> Path:
    """A folder beside the server's base, with canaries; links in the base lead there."""
    folder = server.base.parent / f"{server.base.name}-outside"
    folder.mkdir()
    for side in ("after", "before"):
        (server.base / "input" / "mine" / side).mkdir(parents=True)
        for name in "ab":
            Image.effect_noise((64, 64), 90).convert("RGB").save(server.base / "input" / "mine" / side / f"{name}.png")
            (server.base / "input" / "mine" / "after" / f"{name}.txt").write_text(f"make {name} red")
    draw_sample(server.base / "input" / SAMPLE_PICTURE)
    marked = PngInfo()
    marked.add_text("parameters", CANARY)
    Image.new("RGB", (64, 64), "red").save(folder / "a.png", pnginfo=marked)
    (folder / "a.txt").write_text(CANARY)
    (folder / "index.json").write_text(json.dumps([CANARY]))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": CANARY}))
    write_safetensors(folder / "lora.safetensors", {}, {"ss_" + CANARY: CANARY, "lora_adapter_metadata": CANARY})
    linked = server.base / "input" / "linked"
    linked.mkdir()
    for name in ("a.png", "a.txt"):
        (linked / name).symlink_to(folder / name)
    (server.base / "input" / "linked-folder").symlink_to(folder)
    (server.base / "output" / "longcat-cache").mkdir(parents=True, exist_ok=True)
    (server.base / "output" / "longcat-cache" / "linked").symlink_to(folder)
    loras = server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    (loras / "linked.safetensors").symlink_to(folder / "lora.safetensors")
    (loras / "junk.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    return folder


def hostile_values(outside: Path) -> list:
    paths = [
        *(str(outside), f"{outside}/a.txt", f"{outside}/new", f"../{outside.name}", f"../../{outside.name}/new", "/"),
        *(
            "linked",
            "linked-folder",
            "linked/../linked-folder",
            "..",
            ".",
            "~",
            "/etc",
            "//host/share",
            "\\\\host\\share",
        ),
        *(
            "linked.safetensors",
            "junk.safetensors",
            "mine",
            "mine/after",
            "C:\\Windows",
            "file:///etc/passwd",
            "%2e%2e",
        ),
    ]
    texts = [
        "",
        " ",
        "x",
        "a\0b",
        "\ud800",
        "\u4e2d" * 90,
        "a/" * 3000,
        "x" * 5000,
        "$(touch canary)",
        "{{7*7}}",
        "NaN",
    ]
    others = [None, True, -1, 0, 1, 2, 1.5, 1e300, 10**12, -(2**63), [], {}, ["1", 0], ["1", 9], ["99", 0], ["1"], [[]]]
    return [*paths, *paths, *texts, *others, {"__value__": ["1", 0]}, {"a": {"b": [1]}}]


class Fuzzer:
    """The same prompts for the same seed."""

    def __init__(self, repository: Path, outside: Path) -> None:
        self.random = random.Random(SEED)
        self.values = hostile_values(outside)
        files = sorted((repository / "workflows" / "api").glob("*.json"))
        self.graphs = [make_tiny(json.loads(file.read_text(encoding="utf-8")), quantised=False) for file in files]

    def prompt(self) -> dict:
        graph = self._cut(copy.deepcopy(self.random.choice(self.graphs)))
        for _ in range(self.random.randint(1, 3)):
            self._spoil(graph)
        return graph

    def _cut(self, graph: dict) -> dict:
        """What one node needs, and an output node on it; mostly of nodes that take little time."""
        ours = [name for name, node in graph.items() if node["class_type"] in NODES]
        light = [name for name in ours if graph[name]["class_type"] not in HEAVY]
        end = self.random.choice(light if self.random.random() < 0.85 else ours)
        for node in graph.values():
            if "instance_data_dir" in node["inputs"] and "clips" not in node["inputs"]["instance_data_dir"]:
                is_reference = node["inputs"]["dataset_type"] == "conditioning"
                node["inputs"] |= {
                    "instance_data_dir": f"mine/{'before' if is_reference else 'after'}",
                    "resolution": "64",
                }
        needed, waiting = {}, [end]
        while waiting:
            name = waiting.pop()
            needed[name] = graph[name]
            links = (value for value in graph[name]["inputs"].values() if isinstance(value, list))
            waiting += [link[0] for link in links if link[0] not in needed]
        return needed | {"end": {"class_type": "PreviewAny", "inputs": {"source": [end, 0]}}}

    def _spoil(self, graph: dict) -> None:
        node = graph[self.random.choice([name for name in graph if name != "end"])]
        inputs, choice = node["inputs"], self.random.random()
        if choice < 0.75 and inputs:
            name = self.random.choice(sorted(inputs))
            inputs[name] = self.random.choice(self._values_for(node["class_type"], name))
        elif choice < 0.82 and inputs:
            del inputs[self.random.choice(sorted(inputs))]
        elif choice < 0.9:
            inputs[self.random.choice(["extra", "recursive", "lora", "rehearsal", "unique_id"])] = self.random.choice(
                self.values
            )
        elif choice < 0.95:
            node["class_type"] = self.random.choice(sorted(NODES))
        elif inputs:
            inputs[self.random.choice(sorted(inputs))] = [self.random.choice(sorted(graph)), self.random.randint(-1, 4)]

    def _values_for(self, class_type: str, name: str) -> list:
        """Mostly such as the queue lets through to the node."""
        declared = NODES[class_type].INPUT_TYPES() if class_type in NODES else {}
        kind = (declared.get("required", {}) | declared.get("optional", {})).get(name, ("STRING",))[0]
        if self.random.random() < 0.2 or name in ("model_family", "model_flavour", *PRECISIONS):
            return self.values
        if isinstance(kind, list):
            return kind
        return [0, 1, 2, 3, 16, 64, -1, 10**12] if kind in ("INT", "FLOAT") else self.values


def ended(server, prompt_id: str) -> dict:
    """The history entry; a run that is long by chance is interrupted. The server answers all the while."""
    start, interrupted = time.monotonic(), False
    while True:
        entry = server.get(f"/history/{prompt_id}").get(prompt_id)
        if entry:
            return entry
        assert time.monotonic() - start < 240, f"a prompt does not end:\n{server.log_end()}"
        if not interrupted and time.monotonic() - start > SECONDS_BEFORE_INTERRUPT:
            server.post("/interrupt", {})
            interrupted = True
        time.sleep(0.05)


def unclear(entry: dict) -> str:
    """What is wrong with how a prompt ended at one of our nodes; empty: nothing."""
    for kind, content in entry["status"]["messages"]:
        if kind == "execution_error" and content["node_type"] in NODES:
            name, message = content["exception_type"].rsplit(".", 1)[-1], content["exception_message"].strip()
            if name not in OUR_ERRORS or not message.endswith((".", ")")) or len(message) > 3_000:
                return f"{content['node_type']}: {content['exception_type']}: {message[:500]}"
    return ""


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes, and every folder and link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else "no file"
    return found


def files_with(folder: Path, words: bytes) -> list[str]:
    files = (Path(here) / name for here, _, names in os.walk(folder) for name in names)
    return [str(file) for file in files if not file.is_symlink() and words in file.read_bytes()]


def test_no_prompt_gets_out_of_its_folders_or_ends_in_a_bare_traceback(server, outside, repository, comfy):
    fuzzer, counted, faults = Fuzzer(repository, outside), Counter(), []
    kept = (outside, server.base / "input" / "mine", server.base / "custom_nodes", server.base / "user" / "__longcat")
    before = [state(folder) for folder in kept]
    beside, beside_core = sorted(os.listdir(outside.parent)), sorted(os.listdir(comfy.path))
    slowest = 0.0
    for number in range(PROMPTS):
        graph, started = fuzzer.prompt(), time.monotonic()
        answer = server.post("/prompt", {"prompt": graph})
        assert answer is not None, f"prompt {number} got no answer"
        texts = [json.dumps(answer)]
        if "prompt_id" in answer:
            entry = ended(server, answer["prompt_id"])
            texts.append(json.dumps([entry["status"], entry["outputs"]]))
            error = unclear(entry)
            faults += [f"prompt {number}: {error}"] if error else []
            refused = [
                content["node_type"] in NODES
                for kind, content in entry["status"]["messages"]
                if kind == "execution_error"
            ]
            counted["refused by a node" if any(refused) else "core's error" if refused else "ran"] += 1
        else:
            counted["refused by the queue"] += 1
        assert not any(CANARY in text for text in texts), f"prompt {number} shows the canary: {json.dumps(graph)}"
        slowest = max(slowest, time.monotonic() - started)
        if number % 50 == 49:
            print(number + 1, dict(counted), faults, flush=True)
    print(f"{PROMPTS} prompts of seed {SEED}: {dict(counted)}, the slowest {slowest:.0f} s, {len(faults)} unclear")
    assert not faults, "\n".join(faults)
    assert CANARY not in json.dumps(server.get("/object_info"))
    assert files_with(server.base, CANARY.encode()) == []
    assert [state(folder) for folder in kept] == before
    assert (sorted(os.listdir(outside.parent)), sorted(os.listdir(comfy.path))) == (beside, beside_core)
    allowed = {"input", "output", "temp", "models", "user", "custom_nodes", "server.log"}
    assert {path.name for path in server.base.iterdir()} <= allowed
    models = {path.name for path in (server.base / "models").iterdir()}
    assert not [name for name in models if (server.base / "models" / name).is_file()]
    assert counted["ran"] and counted["refused by a node"] and counted["refused by the queue"]
