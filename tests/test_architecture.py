"""The order of the house: which room may import from which, and what no file may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ROOMS = (
    "training",
    "training/settings",
    "training/data",
    "training/models",
    "training/weights",
    "training/lora",
    "training/caches",
    "training/sampling",
    "training/loop",
    "training/simpletuner",
    "training/tiny",
    "training/rehearsal",
    "nodes",
    "nodes/graph",
    "nodes/terminal",
)
"""From the ground up: a file imports from its own room and from rooms before it. See docs/architecture.md."""

HOST_MODULES = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "latent_preview")


def test_files_import_only_from_their_own_room_and_from_rooms_below():
    assert upward_imports(ROOT) == []


def test_no_two_files_import_each_other():
    assert import_circles(ROOT) == []


def test_planted_faults_of_order_are_found(tmp_path):
    sources = {
        "training/files.py": "from .settings.run import TrainConfig",
        "training/settings/run.py": "",
        "training/data/picture_sets.py": "def lazy():\n    from ..loop import train",
        "training/loop/train.py": "",
        "training/lora/file.py": "if TYPE_CHECKING:\n    from ..caches.store import Item",
        "training/caches/store.py": "from ..lora import file",
        "training/models/flow.py": "def lazy():\n    from . import registry",
        "training/models/registry.py": "from .flow import add_noise",
        "training/models/image/family.py": "from ..registry import family_of",
        "nodes/train.py": "from ..training.loop.train import train\nfrom .terminal import host",
        "nodes/terminal/host.py": "import comfyui_longcat.training.files",
    }
    for name, source in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert upward_imports(tmp_path) == [
        "nodes/train.py line 2 imports nodes/terminal/host.py",
        "training/data/picture_sets.py line 2 imports training/loop/train.py",
        "training/files.py line 1 imports training/settings/run.py",
        "training/lora/file.py line 2 imports training/caches/store.py",
    ]
    assert import_circles(tmp_path) == [
        ["training/caches/store.py", "training/lora/file.py"],
        ["training/models/flow.py", "training/models/registry.py"],
    ]


def test_training_imports_without_comfyui_and_without_nodes():
    script = f"""
import importlib, pkgutil, sys

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HOST_MODULES!r} or ".nodes" in name and name.startswith("comfyui_longcat"):
            raise AssertionError("training imports " + name)

import comfyui_longcat.training as training
for name in [name for name in sys.modules if name.startswith("comfyui_longcat.nodes")]:
    del sys.modules[name]
sys.meta_path.insert(0, Barrier())
walked = [module.name for module in pkgutil.walk_packages(training.__path__, training.__name__ + ".")]
for name in walked:
    importlib.import_module(name)
print(len(walked))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(1 for _ in (ROOT / "training").rglob("*.py")) - 1
    absolute = [
        f"{name} line {node.lineno}"
        for name, tree in _trees(ROOT)
        for node in ast.walk(tree)
        if any(module.split(".")[0] == "comfyui_longcat" for module in _absolute_names(node))
    ]
    assert absolute == [], "import relatively: ComfyUI loads the pack under the name of its folder"


def test_nothing_runs_strings_or_unpickles():
    calls = ("eval", "exec", "compile", "__import__", "torch.load")
    modules = ("pickle", "dill", "marshal")
    faults = []
    for name, tree in _trees(ROOT):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                faults.append(f"{name} line {node.lineno}: {ast.unparse(node.func)}()")
            faults += [f"{name} line {node.lineno}: {each}" for each in _absolute_names(node) if each in modules]
    assert faults == []


def upward_imports(root: Path) -> list[str]:
    """Imports from a room that stands later in `ROOMS`, wherever in the file they are."""
    found = {
        f"{name} line {line} imports {target}"
        for name, line, target in _imports(root)
        if ROOMS.index(_room(name)) < ROOMS.index(_room(target))
    }
    return sorted(found)


def import_circles(root: Path) -> list[list[str]]:
    """Groups of files that reach each other over their imports."""
    targets: dict[str, set[str]] = {}
    for name, _, target in _imports(root):
        targets.setdefault(name, set()).add(target)
    reachable = {name: _reachable(name, targets) for name in targets}
    circles = {tuple(sorted(o for o in reachable[name] if name in reachable.get(o, ()))) for name in targets}
    return sorted(list(circle) for circle in circles if circle)


def _reachable(name: str, targets: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = targets.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _room(name: str) -> str:
    """The room of a file: the longest entry of `ROOMS` that it lies below."""
    return max((room for room in ROOMS if name.startswith(f"{room}/")), key=len)


def _imports(root: Path) -> Iterator[tuple[str, int, str]]:
    """(file, line, imported file) of the pack's imports from itself."""
    for name, tree in _trees(root):
        package = Path(name).parent.parts
        for node in ast.walk(tree):
            for target in _targets(node, package):
                file = _file_of(root, target)
                if file is not None and file != name:
                    yield name, node.lineno, file


def _targets(node: ast.AST, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Dotted names, as tuples from the root on, that an import statement may load."""
    if isinstance(node, ast.Import):
        return [tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("comfyui_longcat.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = tuple(node.module.split(".")) if node.module else ()
    if node.level:
        base = package[: len(package) - node.level + 1] + module
    elif module[:1] == ("comfyui_longcat",):
        base = module[1:]
    else:
        return []
    return [(*base, alias.name) for alias in node.names]


def _file_of(root: Path, target: tuple[str, ...]) -> str | None:
    """The module that `target` is, or in which it is a name."""
    for parts in (target, target[:-1]):
        for path in (Path(*parts, "__init__.py"), Path(*parts[:-1], f"{parts[-1]}.py")) if parts else ():
            if (root / path).is_file():
                return path.as_posix()
    return None


def _absolute_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


def _trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for top in ("nodes", "training"):
        for path in sorted((root / top).rglob("*.py")):
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
