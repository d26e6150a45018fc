"""What a ComfyUI user installs, requirements.txt beside torch and nothing else, runs every shipped workflow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.install

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows" / "api").glob("*.json"))
TRAININGS = ("longcat_image_edit_train", "longcat_video_i2v_train")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """Runs Python of an environment in which only torch and requirements.txt were installed; returns its output."""
    folder = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = (line for line in tested if line.startswith("torch=="))
    for what in ([torch], ["-r", ROOT / "requirements.txt"]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
    # The pack is a folder that is imported where it lies, as in custom_nodes; it is not installed.
    (folder / "packs").mkdir()
    (folder / "packs" / "comfyui_longcat").symlink_to(ROOT, target_is_directory=True)
    environment = os.environ | {"PYTHONPATH": str(folder / "packs"), "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        done = subprocess.run(
            [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_every_workflow_finds_its_model_and_its_precisions(user):
    lines = user(Path(__file__).with_name("load_models.py"), *WORKFLOWS).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("longcat_")] == [path.stem for path in WORKFLOWS]


@pytest.mark.parametrize("name", TRAININGS)
def test_trains_in_the_precision_that_the_workflow_asks_for(user, tmp_path, name):
    workflow = ROOT / "workflows" / "api" / f"{name}.json"
    home = ["--base-directory", tmp_path]
    shown = user("-m", "comfyui_longcat", "run", workflow, "--tiny", *home)
    assert "finished at step" in shown
    (config,) = (tmp_path / "output" / "longcat").glob("*/config.json")
    assert '"base_model_precision": "int8-quanto"' in config.read_text(encoding="utf-8")
    assert list((tmp_path / "models" / "loras").rglob("*.safetensors"))


def test_the_doctor_finds_nothing_missing(user):
    assert "MISSING" not in user("-m", "comfyui_longcat", "doctor")
