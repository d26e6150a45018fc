"""What ComfyUI gets when it loads the pack: light modules, named nodes with help pages, example workflows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OWN_MODULES = 37
"""At most this many files of ours are read while ComfyUI starts."""

STANDARD_MODULES = 90
"""At most this many of the standard library besides; an empty Python 3.13 loads 85, an older one fewer."""


# As core does it (nodes.py, load_custom_node): the folder's path is the module's name.
LOAD_AS_COMFYUI = f"""
import importlib.util, json, sys
folder = {str(ROOT)!r}
name = folder.replace(".", "_x_")
before = set(sys.modules)
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
imported = sorted(set(sys.modules) - before)
nodes = {{id: module.NODE_DISPLAY_NAME_MAPPINGS.get(id) for id in module.NODE_CLASS_MAPPINGS}}
inputs = [kind.INPUT_TYPES() for kind in module.NODE_CLASS_MAPPINGS.values()]
of_inputs = sorted(set(sys.modules) - before - set(imported))
print(json.dumps(dict(name=name, imported=imported, of_inputs=of_inputs, nodes=nodes, web=module.WEB_DIRECTORY)))
"""


@pytest.fixture(scope="module")
def loaded() -> dict:
    done = subprocess.run([sys.executable, "-c", LOAD_AS_COMFYUI], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_pack_loads_light(loaded):
    own = [module for module in loaded["imported"] if module.startswith(loaded["name"])]
    standard = [module for module in loaded["imported"] if module.partition(".")[0] in sys.stdlib_module_names]
    assert sorted(own + standard) == loaded["imported"], "the pack may import only the standard library"
    assert len(own) <= OWN_MODULES, own
    assert len(standard) <= STANDARD_MODULES, standard


def test_declaring_the_inputs_loads_light(loaded):
    foreign = [
        module
        for module in loaded["of_inputs"]
        if not module.startswith(loaded["name"]) and module.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert foreign == []


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
