"""The quickstarts as printed: every JSON block and every command that copies a config, trains or validates.

Read as: `simpletuner` is `longcat`, `/data` and `/cache` are folders of the test, and `--tiny` swaps in the twin.
Blocks and lines that are equal in several translations are executed once.
"""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys

import pytest
from comfyui_longcat.nodes.graph.catalogue import WORKFLOWS
from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.description import to_api
from comfyui_longcat.nodes.graph.from_config import KEPT, NODE_OF, training_graph
from comfyui_longcat.nodes.graph.tiny import make_tiny
from comfyui_longcat.nodes.graph.to_config import run_of_workflow
from comfyui_longcat.nodes.graph.ui import to_ui
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.cli import main
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.nodes.terminal.train import check_folders
from comfyui_longcat.training import files
from comfyui_longcat.training.errors import ConfigError, PathError
from comfyui_longcat.training.simpletuner.keys import CONFIG_KEYS
from comfyui_longcat.training.simpletuner.read import check_trainable, read_files, read_run
from comfyui_longcat.training.simpletuner.write import write_run
from comfyui_longcat.training.tiny.examples import draw_example_clips, draw_example_pairs

IMAGE_GUIDES = ("longcat_image.pt-BR", "longcat_image_edit.en", "longcat_image_edit.hi", "longcat_image_edit.pt-BR")
EXECUTED = ("longcat_image.pt-BR", "longcat_image_edit.en")
VIDEO_GUIDE = "longcat_video_i2v.en"
GUIDES = (*IMAGE_GUIDES, VIDEO_GUIDE)

VALIDATION_SPLIT = {
    "longcat-video-train": "longcat-video-val",
    "longcat-video-cond": "longcat-video-val-cond",
    "/data/video-clips": "/data/val-clips",
    "/data/video-start-frames": "/data/val-start-frames",
}
"""The video guide prints the training data only, and says that its eval_dataset_id is a split of the same structure:
new names by those that are printed."""

TEXT_TO_IMAGE_DATA = [{"id": "pictures", "type": "local", "instance_data_dir": "/data/edits", "resolution": 1024}]
"""The text-to-image guide prints no data file: it says that folders of captioned pictures work."""

FEW_STEPS = ["--max_train_steps", "2", "--num_samples", "1"]


@pytest.fixture(scope="module")
def blocks(repository):
    """JSON text of a guide's block, e.g. `blocks("longcat_image_edit.en", "data")`; None where there is none."""

    def read(guide, kind):
        path = repository / "tests" / "assets" / "quickstarts" / f"{guide}.{kind}.jsonc"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return read


@pytest.fixture(scope="module")
def commands(repository):
    path = repository / "tests" / "assets" / "quickstarts" / "commands.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def clone(tmp_path, monkeypatch, repository):
    """An empty working folder with the shipped examples, as after a clone, and the guides' data folders."""
    shutil.copytree(repository / "config", tmp_path / "config", ignore=shutil.ignore_patterns("*.json"))
    draw_example_pairs(tmp_path / "data" / "edits", tmp_path / "data" / "refs", count=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def parse_json(text, where):
    return files.parse_json(text, where, ConfigError, "", kind=object, comments=True)


def _data(blocks, guide):
    """The guide's data file, with what it leaves to the reader."""
    data = parse_json(blocks(guide, "data") or json.dumps(TEXT_TO_IMAGE_DATA), guide)
    if guide != VIDEO_GUIDE:
        return data
    split = json.dumps(data)
    for printed, new in VALIDATION_SPLIT.items():
        split = split.replace(f'"{printed}"', f'"{new}"')
    return [*data, *json.loads(split)]


def _write_blocks(blocks, guide, folder):
    data = json.dumps(_data(blocks, guide)) if guide == VIDEO_GUIDE else blocks(guide, "data")
    data = data or json.dumps(TEXT_TO_IMAGE_DATA)
    for name in ("data", "cache"):
        data = data.replace(f'"/{name}/', f'"{(folder / name).as_posix()}/')
    (folder / "config" / "config.json").write_text(blocks(guide, "config"), encoding="utf-8")
    (folder / "config" / "multidatabackend.json").write_text(data, encoding="utf-8")


def _line(commands, guide, word):
    (line,) = [line for line in commands[guide] if f" {word} " in line or line.startswith(f"{word} ")]
    program, *words = shlex.split(line)
    assert program in ("simpletuner", "cp", "flags")
    return words


def test_translations_print_the_same(blocks, commands):
    for guide in IMAGE_GUIDES[2:]:
        for kind in ("config", "data"):
            assert parse_json(blocks(guide, kind), guide) == parse_json(blocks("longcat_image_edit.en", kind), "en")
        assert sorted(commands[guide]) == sorted(commands["longcat_image_edit.en"])


@pytest.mark.parametrize("guide", EXECUTED)
def test_guide_works_as_printed(guide, blocks, commands, clone, capsys):
    trained = _train_as_printed(guide, blocks, commands, clone)
    assert main([*_line(commands, guide, "validate"), "--tiny", "--num_samples", "1"]) == 0
    assert f"LoRA: {trained.name}" in capsys.readouterr().err
    (picture,) = (clone / "longcat-home" / "output" / "validation").glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_video_guide_works_as_printed(blocks, commands, clone):
    for clips, starts, seed in (("video-clips", "video-start-frames", 0), ("val-clips", "val-start-frames", 1)):
        draw_example_clips(clone / "data" / clips, clone / "data" / starts, count=3, seed=seed)
    trained = _train_as_printed(VIDEO_GUIDE, blocks, commands, clone)
    run = clone / "longcat-home" / "output" / "longcat" / trained.stem
    shown = {path.name for path in (run / "samples").iterdir()}
    first = min((clone / "data" / "val-clips").glob("*.mp4")).stem
    assert shown and all(first in name for name in shown), "validation samples the evaluation set"


def _train_as_printed(guide, blocks, commands, clone):
    """Path of the LoRA that the printed commands train; the imported workflow trains the same."""
    shutil.copyfile(*_line(commands, guide, "cp"))
    read_files(clone / "config" / "config.json", {})
    _write_blocks(blocks, guide, clone)

    train = [*_line(commands, guide, "train"), *FEW_STEPS]
    assert main([*train, "--tiny"]) == 0
    (trained,) = (clone / "longcat-home" / "models" / "loras").glob("*.safetensors")

    # The same through the imported workflow: in API format, and as ComfyUI's window would send the UI format.
    assert main(["config", "import", "config/config.json", "-o", "imported", *FEW_STEPS]) == 0
    assert main(["run", "imported.api.json", "--tiny", "--base-directory", "other"]) == 0
    (imported,) = (clone / "other" / "models" / "loras").glob("*.safetensors")
    assert imported.read_bytes() == trained.read_bytes()

    _check_trainer_used_the_workflow(clone, trained.stem)
    return trained


def _check_trainer_used_the_workflow(folder, run_name):
    """Everything that the tiny twin of the imported workflow says is what the run has written down."""
    used = json.loads((folder / "longcat-home" / "output" / "longcat" / run_name / "config.json").read_text("utf-8"))
    said = run_of_workflow(make_tiny(json.loads((folder / "imported.json").read_text("utf-8"))), "imported.json")
    assert json.loads(json.dumps(dataclasses.asdict(said.train))) == used["train"]
    assert json.loads(json.dumps(dataclasses.asdict(said.model))) == used["model"]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_value_of_a_guide_is_in_the_workflow(guide, blocks, tmp_path):
    config, data = parse_json(blocks(guide, "config"), guide), _data(blocks, guide)
    with use_host(TerminalHost(tmp_path)):
        graph = to_api(training_graph(read_run(config, data), guide), node_classes())
    nodes = {node["class_type"]: node["inputs"] for node in graph.values()}
    differently = {"model_type": "lora", "pretrained_model_name_or_path": None, "validation_using_datasets": True}
    for name, value in config.items():
        if name == "eval_dataset_id":
            assert _pairs_behind(graph, nodes["LongCatValidation"]) == [value, VALIDATION_SPLIT["longcat-video-cond"]]
        elif name in differently:
            assert value == differently[name]
        else:
            assert nodes[NODE_OF[CONFIG_KEYS[name].owner]][name] == value, name
    if "pretrained_model_name_or_path" in config:
        assert nodes["LoadLongCat"]["pretrained_model_name_or_path"] == "auto"
    datasets = {n["inputs"]["id"]: n["inputs"] for n in graph.values() if n["class_type"] == "LongCatDataset"}
    for entry in data:
        widgets = datasets[entry["id"]]
        assert widgets["instance_data_dir"] == entry["instance_data_dir"]
        assert widgets["caption_strategy"] == (entry.get("caption_strategy", "textfile") or "none")
        assert widgets["resolution"] == str(entry["resolution"])
        assert widgets["is_i2v"] == entry.get("is_i2v", False)
        assert widgets["dataset_type"] in (entry.get("dataset_type", "image"), "conditioning")
        role = "reference_cache_dir_vae" if widgets["dataset_type"] == "conditioning" else "cache_dir_vae"
        assert nodes["CacheVAELatents"][role] == entry.get("cache_dir_vae", "vae/targets")
        assert entry["type"] == "local"
    if "conditioning_data" in data[0]:
        assert _pairs_behind(graph, nodes["TrainLoRA"]) == [data[0]["id"], *data[0]["conditioning_data"]]


def _pairs_behind(graph, inputs):
    """Ids of the two datasets that a node's cache was made from."""
    text = graph[inputs["cache"][0]]["inputs"]
    pair = graph[graph[text["cache"][0]]["inputs"]["pairs"][0]]["inputs"]
    return [graph[pair[side][0]]["inputs"]["id"] for side in ("targets", "references")]


@pytest.mark.parametrize(
    ("guide", "workflow"),
    [
        ("longcat_image.pt-BR", "longcat_image_t2i_train"),
        ("longcat_image_edit.en", "longcat_image_edit_train"),
        (VIDEO_GUIDE, "longcat_video_i2v_train"),
    ],
)
def test_shipped_workflow_has_the_guides_values(guide, workflow, blocks, tmp_path):
    with use_host(TerminalHost(tmp_path)):
        shipped = run_of_workflow(to_api(WORKFLOWS[workflow](), node_classes()), workflow)
    config, again = parse_json(blocks(guide, "config"), guide), write_run(shipped)[0]
    different = {name for name, value in config.items() if again.get(name) != value}
    # The wires say the latter.
    assert different <= {"pretrained_model_name_or_path", "validation_using_datasets"}


@pytest.mark.parametrize("guide", GUIDES)
def test_round_trip_loses_nothing(guide, blocks, tmp_path):
    config = parse_json(blocks(guide, "config"), guide) | {"report_to": "none", "output_dir": "/out/of/here/my-run"}
    data = _data(blocks, guide)
    run = read_run(config, data)
    with use_host(TerminalHost(tmp_path)):
        graph = training_graph(run, guide)
        for workflow in (to_api(graph, node_classes()), to_ui(graph, node_classes())):
            stored = json.loads(json.dumps(workflow))
            assert write_run(run_of_workflow(stored, guide)) == (config, data)
        ui = to_ui(graph, node_classes())
    assert KEPT in ui["extra"]


def test_a_changed_widget_is_exported_and_nothing_else_changes(blocks, tmp_path):
    guide = "longcat_image_edit.en"
    config, data = (parse_json(blocks(guide, kind), guide) for kind in ("config", "data"))
    with use_host(TerminalHost(tmp_path)):
        graph = to_api(training_graph(read_run(config, data), guide), node_classes())
        for node in graph.values():
            if node["class_type"] == "TrainLoRA":
                node["inputs"] |= {"lora_rank": 4, "run_name": "other"}
            if node["class_type"] == "LongCatTrainingOptions":
                node["inputs"]["flow_schedule_shift"] = 3.0
            if node["inputs"].get("id") == "ref-images":
                node["inputs"]["resolution"] = "512"
        changed, datasets = write_run(run_of_workflow(graph, guide))
    shift = {"flow_schedule_shift": 3.0, "flow_schedule_auto_shift": False}
    assert changed == config | {"lora_rank": 4, "run_name": "other"} | shift
    assert datasets == [data[0], data[1] | {"resolution": 512}]


@pytest.mark.parametrize("workflow", ["longcat_image_edit_train", "longcat_image_t2i_train", "longcat_video_i2v_train"])
def test_shipped_workflow_becomes_files_and_comes_back(workflow, repository, clone):
    path = repository / "workflows" / f"{workflow}.json"
    assert main(["config", "export", str(path), "-o", "exported"]) == 0
    assert main(["config", "import", "exported/config.json", "-o", "back"]) == 0
    with use_host(TerminalHost(clone)):
        before, after = (
            run_of_workflow(parse_json(each.read_text(), str(each)), "x") for each in (path, clone / "back.json")
        )
    assert before.settings == after.settings
    assert main(["config", "import", "exported/config.json", "-o", "back"]) == 1, "an existing file was replaced"


def test_offload_flags_of_the_guide(blocks, commands, clone):
    _write_blocks(blocks, "longcat_image.pt-BR", clone)
    flags = _line(commands, "longcat_image.pt-BR", "--enable_group_offload")
    assert main(["config", "import", "config/config.json", "-o", "offload", *flags]) == 0
    graph = json.loads((clone / "offload.api.json").read_text(encoding="utf-8"))
    model = graph["1"]["inputs"]
    assert model["enable_group_offload"] is True
    assert (model["group_offload_type"], model["group_offload_blocks_per_group"]) == ("block_level", 1)


@pytest.mark.parametrize(
    ("guide", "change", "words"),
    [
        ("longcat_image_edit.en", ["--learning_raet", "1"], "the nearest is 'learning_rate'"),
        ("longcat_image_edit.en", ["--model_flavour", "final"], "draws from text alone"),
        ("longcat_image_edit.en", ["data", "ref-images", "ref-imagse"], "(the nearest is 'ref-imagse')"),
        (VIDEO_GUIDE, ["--num_frames", "92"], "num_frames (LongCat Dataset) is 92"),
        (
            VIDEO_GUIDE,
            ["--validation_num_video_frames", "92"],
            "validation_num_video_frames (LongCat Validation) is 92",
        ),
        (VIDEO_GUIDE, ["--validation_resolution", "480x830"], "is 830; it must be a multiple of 16"),
        (VIDEO_GUIDE, ["--flow_schedule_shift", "0"], "flow_schedule_shift is 0"),
        (VIDEO_GUIDE, ["--model_flavour", "dev"], "longcat_video has no such flavour"),
        (VIDEO_GUIDE, ["--model_family", "longcat_image"], "is trained on dataset_type 'image'"),
        (VIDEO_GUIDE, ["--eval_dataset_id", "longcat-video-vla"], "the nearest is 'longcat-video-val'"),
        (VIDEO_GUIDE, ["data", "longcat-video-cond", "start"], "no other dataset of that id"),
    ],
    ids=[
        *("misspelt key", "impossible combination", "missing reference set", "frames", "validation frames", "size"),
        *("shift", "flavour", "family", "evaluation set", "missing start frames"),
    ],
)
def test_faults_stop_before_anything_heavy_loads(guide, change, words, blocks, clone):
    _write_blocks(blocks, guide, clone)
    if change[0] == "data":
        path = clone / "config" / "multidatabackend.json"
        datasets = parse_json(path.read_text(encoding="utf-8"), "data")
        datasets[1]["id"] = change[2]
        path.write_text(json.dumps(datasets), encoding="utf-8")
        change = []
    script = (
        "import sys; from comfyui_longcat.nodes.terminal.cli import main; code = main(sys.argv[1:]);"
        " sys.exit(50 if {'torch', 'PIL', 'diffusers'} & set(sys.modules) else code)"
    )
    command = [sys.executable, "-c", script, "train", "--config", "config/config.json", *change]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    print(done.stderr.strip())
    assert done.returncode == 1, "a heavy library was imported" if done.returncode == 50 else done.stderr
    assert words in done.stderr


def test_a_missing_folder_stops_a_run_but_not_an_import(blocks, clone, capsys):
    _write_blocks(blocks, "longcat_image_edit.en", clone)
    shutil.rmtree(clone / "data" / "refs")
    assert main(["train"]) == 1
    assert "ref-images" in capsys.readouterr().err
    assert main(["config", "import", "config/config.json", "-o", "imported"]) == 0


def test_drawn_examples_need_not_exist(tmp_path):
    folders = ("longcat-example/targets", "longcat-example-captioned", "longcat-example-clips/clips")
    data = [{"id": name, "instance_data_dir": name} for name in folders]
    check_folders(read_run({}, data), TerminalHost(tmp_path))
    with pytest.raises(PathError, match="'longcat-example-clip'"):
        check_folders(read_run({}, [{"id": "a", "instance_data_dir": "longcat-example-clip"}]), TerminalHost(tmp_path))


def test_fresh_folder_gets_the_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "examples"]) == 0
    shutil.copyfile("config/config.json.example", "config/config.json")
    run = read_files(tmp_path / "config" / "config.json", {})
    check_trainable(run)
    assert run.notes == ()
