"""The rules of the house that no linter knows."""

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FILE_LINES = 400
FUNCTION_LINES = 50

LONG_FILES: dict[str, str] = {}
"""Path of a file over the limit -> the reason."""

LONG_FUNCTIONS: dict[str, str] = {}
"""`path::function` over the limit -> the reason."""

HOST_MODULES = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "latent_preview")

# What the pack may not load while ComfyUI starts.
HEAVY_MODULES = (
    "torch numpy PIL diffusers transformers peft safetensors accelerate optimum torchao huggingface_hub aiohttp av"
).split()

IMPORT_SECONDS = 0.1


def _python_files(*tops: str) -> list[Path]:
    files = sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))
    return [*sorted(ROOT.glob("*.py")), *files]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=_name(path))


PACKAGE_FILES = _python_files("nodes", "training")
ALL_FILES = _python_files("nodes", "training", "tests")


def _faults(found: dict[str, int], allowed: dict[str, str]) -> dict[str, int | str]:
    """What is too long and no exception, and the exceptions that nothing needs any more."""
    new = {name: lines for name, lines in found.items() if name not in allowed}
    return new | {name: "no longer an exception" for name in allowed if name not in found}


def test_files_are_short():
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES}
    lengths |= {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "js").glob("*.js")}
    assert _faults({name: lines for name, lines in lengths.items() if lines > FILE_LINES}, LONG_FILES) == {}


def test_functions_are_short():
    found = {}
    for path in ALL_FILES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    found[f"{_name(path)}::{node.name}"] = lines
    assert _faults(found, LONG_FUNCTIONS) == {}


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=_name)
def test_nothing_runs_strings_or_pickles(path):
    faults = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__", "torch.load", "print"):
                faults.append(f"line {node.lineno}: {called}()")
        modules = _imported(node)
        faults += [f"line {node.lineno}: import {name}" for name in modules if name in ("pickle", "dill", "marshal")]
    if _name(path) == "nodes/terminal/cli.py":
        faults = [fault for fault in faults if "print" not in fault]
    assert not faults


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module.split(".")[0]]
    return []


@pytest.mark.parametrize("path", ALL_FILES, ids=_name)
def test_sources_hold_only_cp1252(path):
    # comfy-test reads sources in the code page of a western Windows.
    text = path.read_text(encoding="utf-8")
    strange = sorted({character for character in text if not _in_cp1252(character)})
    assert not strange, [f"U+{ord(character):04X}" for character in strange]


def _in_cp1252(character: str) -> bool:
    try:
        character.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("path", [p for p in PACKAGE_FILES if "training" in p.parts], ids=_name)
def test_training_imports_stay_inside_training(path):
    depth = len(path.relative_to(ROOT).parts) - 1
    climbing = [
        f"line {node.lineno}"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ImportFrom) and node.level > depth
    ]
    assert not climbing, "these relative imports leave training/"
    absolute = [name for node in ast.walk(_tree(path)) for name in _imported(node) if name == "comfyui_longcat"]
    assert not absolute, "import relatively: ComfyUI loads the pack under the name of its folder"


def test_training_imports_without_comfyui():
    script = f"""
import importlib, pkgutil, sys

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HOST_MODULES!r}:
            raise AssertionError("training imports " + name)

sys.meta_path.insert(0, Barrier())
import comfyui_longcat.training as training
before = set(sys.modules)
walked = []
for module in pkgutil.walk_packages(training.__path__, training.__name__ + "."):
    importlib.import_module(module.name)
    walked.append(module.name)
nodes = [name for name in set(sys.modules) - before if name.startswith("comfyui_longcat.nodes")]
assert not nodes, f"training imports {{nodes}}"
print(len(walked))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    modules = sum(1 for path in (ROOT / "training").rglob("*.py")) - 1
    assert int(done.stdout) == modules


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
