"""`longcat run --server` against a real ComfyUI, and our stand-ins of core nodes against core's own."""

import os
import subprocess

import pytest
from comfyui_longcat.nodes.graph.core_nodes import CORE_NODES
from comfyui_longcat.nodes.graph.signature import signature_of
from comfyui_longcat.nodes.terminal.cli import main

pytestmark = pytest.mark.comfy


@pytest.fixture
def api(repository):
    return lambda name: str(repository / "workflows" / "api" / f"{name}.json")


def test_shipped_workflows_run_there(server, api, tmp_path, capsys):
    for name in ("longcat_image_edit_train", "longcat_image_edit_sample"):
        command = ["run", api(name), "--tiny", "--server", server.url, "--base-directory", str(tmp_path)]
        code = main(command)
        shown = capsys.readouterr()
        assert code == 0, shown.err
    assert "output/longcat-edit_00001_.png" in shown.out
    assert (server.base / "output" / "longcat-edit_00001_.png").is_file()
    assert not list(tmp_path.iterdir())


def test_terminal_and_nodes_train_the_same_lora(comfy, server, api, repository, tmp_path):
    """Bit for bit, and so with the same Python, the same torch and one thread on both sides."""
    (tmp_path / "comfyui_longcat").symlink_to(repository, target_is_directory=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    settings = ("TrainLoRA.run_name=both", "LoadLongCat.base_model_precision=bf16")
    command = [comfy.python, "-m", "comfyui_longcat", "run", api("longcat_image_edit_train"), "--tiny"]
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--set", "LoadLongCat.text_encoder_1_precision=no_change"]
    for place in (["--base-directory", str(tmp_path / "home")], ["--server", server.url]):
        done = subprocess.run([*command, *place], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    loras = [base / "models" / "loras" / "both.safetensors" for base in (tmp_path / "home", server.base)]
    assert loras[0].read_bytes() == loras[1].read_bytes()


def test_faults_found_there_are_shown(server, api, capsys):
    command = ["run", api("longcat_image_edit_sample"), "--tiny", "--server", server.url]
    assert main([*command, "--set", "LongCatSampleEdit.num_inference_steps=0"]) == 1
    shown = capsys.readouterr().err
    assert "(LongCatSampleEdit)" in shown and "num_inference_steps" in shown
    assert main([*command, "--set", "LongCatSampleEdit.width=65"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("(LongCatSampleEdit)") == shown.count("multiple of 16") == 1, "refused when queued, and once"
    assert main([*command, "--set", "LoadLongCat.pretrained_model_name_or_path=nowhere"]) == 1
    shown = capsys.readouterr().err
    assert "(LoadLongCat) failed on the server" in shown and "nowhere" in shown


@pytest.mark.parametrize("name", sorted(CORE_NODES))
def test_stand_ins_declare_what_core_does(server, name):
    core = server.get(f"/object_info/{name}")[name]
    ours = signature_of(CORE_NODES[name])
    inputs = {
        key: "COMBO" if isinstance(entry[0], list) else entry[0]
        for section in ("required", "optional")
        for key, entry in core["input"].get(section, {}).items()
    }
    assert inputs == {spec.name: spec.type for spec in ours.inputs}
    assert list(zip(core["output_name"], core["output"], strict=True)) == [(o.name, o.type) for o in ours.outputs]
    assert core["output_node"] == getattr(CORE_NODES[name], "OUTPUT_NODE", False)
