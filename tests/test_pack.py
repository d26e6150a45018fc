"""What ComfyUI gets when it loads the pack: light modules, named nodes with help pages, example workflows."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What the pack may not load while ComfyUI starts.
HEAVY_MODULES = (
    "torch numpy PIL diffusers transformers peft safetensors accelerate optimum torchao huggingface_hub aiohttp av"
).split()

IMPORT_SECONDS = 0.1


# As core does it (nodes.py, load_custom_node): the folder's path is the module's name.
LOAD_AS_COMFYUI = f"""
import importlib.util, json, sys, time
folder = {str(ROOT)!r}
name = folder.replace(".", "_x_")
start = time.process_time()  # of this process alone: a busy machine must not fail the test
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
seconds = time.process_time() - start
heavy = [name for name in {HEAVY_MODULES!r} if name in sys.modules]
nodes = {{id: module.NODE_DISPLAY_NAME_MAPPINGS.get(id) for id in module.NODE_CLASS_MAPPINGS}}
inputs = [kind.INPUT_TYPES() for kind in module.NODE_CLASS_MAPPINGS.values()]
heavy_inputs = [name for name in {HEAVY_MODULES!r} if name in sys.modules]
print(json.dumps(dict(seconds=seconds, heavy=heavy, heavy_inputs=heavy_inputs, nodes=nodes, web=module.WEB_DIRECTORY)))
"""


def _load_as_comfyui() -> dict:
    done = subprocess.run([sys.executable, "-c", LOAD_AS_COMFYUI], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def loaded() -> dict:
    _load_as_comfyui()  # writes the bytecode, so that the timed loads start like ComfyUI's second start
    loads = [_load_as_comfyui() for _ in range(5)]
    return loads[0] | {"seconds": statistics.median(load["seconds"] for load in loads)}


def test_the_pack_loads_fast_and_light(loaded):
    assert not loaded["heavy"]
    assert not loaded["heavy_inputs"], "loaded by INPUT_TYPES"
    print(f"import of the pack: {loaded['seconds'] * 1000:.0f} ms of processor time")
    assert loaded["seconds"] < IMPORT_SECONDS


def test_every_node_has_a_name_and_a_help_page(loaded):
    assert loaded["nodes"], "no node is registered"
    assert (ROOT / loaded["web"]).is_dir()
    unnamed = [node for node, shown in loaded["nodes"].items() if not shown]
    assert not unnamed, f"without display name: {unnamed}"
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "js" / "docs").glob("*.md")}
    assert set(pages) == set(loaded["nodes"])


def test_help_pages_name_every_input_and_output(loaded):
    from comfyui_longcat import NODE_CLASS_MAPPINGS

    missing = {}
    for node, kind in NODE_CLASS_MAPPINGS.items():
        page = (ROOT / "js" / "docs" / f"{node}.md").read_text(encoding="utf-8")
        declared = kind.INPUT_TYPES()
        names = [*declared.get("required", {}), *declared.get("optional", {}), *kind.RETURN_NAMES]
        missing[node] = [name for name in names if f"**{name}**" not in page]
    assert not {node: names for node, names in missing.items() if names}


def test_every_node_is_in_an_example_workflow(loaded):
    used = set()
    for path in (ROOT / "workflows").glob("*.json"):
        used |= {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert set(loaded["nodes"]) <= used, f"in no workflow: {sorted(set(loaded['nodes']) - used)}"
