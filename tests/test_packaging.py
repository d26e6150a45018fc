"""What a user's pip, ComfyUI-Manager and the registry read must agree with each other and with the tree."""

import importlib.metadata
import re
import subprocess
import sys

import pytest
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def _lines(path):
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _name(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")


def test_requirements_mirror_the_project_without_torch(repository, project):
    expected = [entry for entry in project["project"]["dependencies"] if _name(entry) != "torch"]
    assert _lines(repository / "requirements.txt") == expected


def test_torch_is_never_pinned(project):
    assert "torch" in project["project"]["dependencies"]


def test_tested_set_pins_every_dependency(repository, project):
    pins = _lines(repository / "constraints.txt")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins), pins
    wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    missing = {_name(entry) for entry in wanted} - {_name(pin) for pin in pins}
    assert not missing


def test_floor_set_pins_the_lowest_versions_allowed(repository, project):
    pins = dict(pin.split("==") for pin in _lines(repository / "constraints-floor.txt"))
    tested = dict(pin.split("==") for pin in _lines(repository / "constraints.txt"))
    assert pins.pop("torch") == tested["torch"]
    floors = {_name(entry): re.search(r">=([\d.]+)", entry)[1] for entry in _lines(repository / "requirements.txt")}
    assert {_name(pin): Version(version) for pin, version in pins.items()} == {
        name: Version(floor) for name, floor in floors.items()
    }


def test_every_package_folder_is_declared(repository, project):
    found = {
        ".".join(("comfyui_longcat", *init.parent.relative_to(repository).parts))
        for top in ("nodes", "training")
        for init in (repository / top).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found | {"comfyui_longcat"}


def test_registry_entry(repository, project):
    entry = project["project"]
    assert "comfyui" not in entry["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
    # WEB_DIRECTORY already serves js/; the same folder named here too would load every script twice.
    assert "web" not in project["tool"]["comfy"]
    namespace = re.sub(r"[^a-z0-9]", "", project["tool"]["comfy"]["DisplayName"].lower())
    script = (repository / "js" / "longcat.js").read_text(encoding="utf-8")
    names = re.findall(r"registerExtension\(\{\s*name: \"([^\"]+)\"", script)
    assert len(names) == 1 and names[0].startswith(namespace + ".")


def test_the_address_to_be_set_is_named_once(repository, project):
    address = project["project"]["urls"]["Repository"]
    pages = [repository / "README.md", *(page for top in ("docs", "js") for page in (repository / top).rglob("*.md"))]
    assert [page.name for page in pages if address in page.read_text(encoding="utf-8")] == []


def test_licence_is_the_whole_apache_text(repository):
    text = (repository / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 10_000


def test_installed_command_answers(project):
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="longcat")
    assert entry.value == project["project"]["scripts"]["longcat"]
    shown = subprocess.run(
        [sys.executable, "-m", "comfyui_longcat", "--help"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    assert "demo" in shown.stdout and "run" in shown.stdout


def test_local_links_of_the_readme_lead_somewhere(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    missing = [link for link in links if not (repository / link).is_file()]
    assert not missing
