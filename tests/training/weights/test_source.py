"""Finding, checking and downloading model folders."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.settings.flavours import FLAVOURS
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.source import check_folder, component_identity, resolve_folder
from comfyui_longcat.training.weights.spec import ModelSpec

EDIT = ModelConfig(model_flavour="edit")
TINY = ModelConfig(model_flavour="tiny-edit")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the twin that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, config: ModelConfig = EDIT) -> str:
    with pytest.raises(ModelError) as caught:
        check_folder(folder, config)
    return str(caught.value)


def split_in_shards(component: Path) -> None:
    """As transformers writes large models: two files and an index."""
    from safetensors.torch import load_file, save_file

    whole = component / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, component / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard)
    whole.unlink()
    (component / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_whole_folder_passes(model):
    check_folder(model, EDIT)
    check_folder(model, TINY)


def test_sharded_weights_pass_and_a_missing_shard_is_named(model):
    split_in_shards(model / "text_encoder")
    check_folder(model, EDIT)
    (model / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refused(model)


def test_index_may_not_point_outside_its_folder(model):
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (model / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert "its own folder" in refused(model)


@pytest.mark.parametrize(
    ("found", "config"),
    [("LongCatImagePipeline", EDIT), ("FluxPipeline", EDIT), ("LongCatImagePipeline", TINY)],
)
def test_other_pipelines_are_refused_by_name(model, found, config):
    edit_json(model / "model_index.json", _class_name=found)
    message = refused(model, config)
    assert found in message and "LongCatImageEditPipeline" in message
    assert "meituan-longcat/LongCat-Image-Edit" in message


@pytest.mark.parametrize(
    ("flavour", "example"),
    [
        ("final", "meituan-longcat/LongCat-Image."),
        ("dev", "meituan-longcat/LongCat-Image-Dev."),
        ("tiny", "meituan-longcat/LongCat-Image."),
        ("edit-turbo", "meituan-longcat/LongCat-Image-Edit-Turbo."),
    ],
)
def test_each_flavour_wants_its_own_pipeline(model, flavour, example):
    config = ModelConfig(model_flavour=flavour)
    wanted = FLAVOURS["longcat_image", flavour].pipeline
    edit_json(model / "model_index.json", _class_name=wanted)
    check_folder(model, config)
    (other,) = {"LongCatImagePipeline", "LongCatImageEditPipeline"} - {wanted}
    edit_json(model / "model_index.json", _class_name=other)
    message = refused(model, config)
    assert f"holds a {other}" in message and wanted in message and example in message


def test_folder_of_longcat_video_is_refused_by_name(tmp_path):
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "config.json").write_text('{"_class_name": "LongCatVideoTransformer3DModel"}')
    message = refused(tmp_path)
    assert "LongCatVideoTransformer3DModel in dit" in message and "LongCatImageEditPipeline" in message


def test_flux_transformer_under_our_index_is_refused(model):
    edit_json(model / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    message = refused(model)
    assert "FluxTransformer2DModel" in message and "LongCatImageTransformer2DModel" in message


def test_parts_of_different_models_are_refused(model):
    edit_json(model / "transformer" / "config.json", joint_attention_dim=3584)
    assert "64 wide" in refused(model) and "3584" in refused(model)
    edit_json(model / "transformer" / "config.json", joint_attention_dim=64, in_channels=16)
    assert "16 latent channels" in refused(model)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_encoder", {"text_config": [], "hidden_size": None}, "the text encoder is None wide"),
        ("text_encoder", {"text_config": {"hidden_size": "64"}}, "the text encoder is 64 wide"),
        ("text_encoder", {"architectures": {"a": 1}, "model_type": ["x"]}, "holds a"),
        ("vae", {"latent_channels": True}, "the VAE has True latent channels"),
        ("vae", {"scaling_factor": "0.3611"}, "has scaling_factor 0.3611; it must be a number"),
        ("vae", {"scaling_factor": 0}, "has scaling_factor 0; it must be a number"),
        ("vae", {"shift_factor": None}, "has shift_factor None; it must be a number"),
        ("vae", {"layers_per_block": 10**6}, "has layers_per_block 1000000; it must be a whole number from 0"),
        ("transformer", {"num_layers": "many"}, "has num_layers many; it must be a whole number from 0"),
        ("transformer", {"joint_attention_dim": {}}, "the transformer takes {}"),
        ("transformer", {"axes_dims_rope": "4"}, "has axes_dims_rope 4 for heads of"),
        ("transformer", {"axes_dims_rope": [4, 4]}, "has axes_dims_rope [4, 4] for heads of"),
        ("transformer", {"attention_head_dim": [32]}, "for heads of [32]"),
        ("transformer", {"auto_map": {"AutoModel": "a.B"}}, "asks to run Python code"),
    ],
)
def test_settings_of_other_types_are_our_error(model, part, changes, message):
    edit_json(model / part / "config.json", **changes)
    found = refused(model)
    assert message in found and str(model / part)[: len(str(model))] in found


def test_odd_rotary_settings_do_not_stop_the_identity(model):
    edit_json(model / "text_encoder" / "config.json", rope_scaling=["x"], rope_parameters=7)
    assert len(component_identity(model, "text_encoder")) == 64


def test_width_of_a_config_written_by_transformers_4_is_read(model):
    path = model / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config.pop("text_config"), **config}))
    check_folder(model, EDIT)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "text_processor"])
def test_missing_part_is_named(model, part):
    shutil.rmtree(model / part)
    assert part in refused(model) and "incomplete" in refused(model)


def test_missing_folder_is_refused(tmp_path):
    assert "no model_index.json" in refused(tmp_path / "nowhere")


def test_missing_weights_show_what_is_there(model):
    (model / "vae" / WEIGHTS).rename(model / "vae" / "diffusion_pytorch_model.bin")
    message = refused(model)
    assert "diffusion_pytorch_model.bin" in message and WEIGHTS in message


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights_are_named(model, keep):
    path = model / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    message = refused(model)
    assert str(path) in message and "again" in message


@pytest.mark.parametrize("header", [b"not json", b"[]", b'{"a": {"dtype": "F32"}}'])
def test_damaged_header_is_named(model, header):
    path = model / "vae" / WEIGHTS
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert str(path) in refused(model)


def test_damaged_json_is_named(model):
    path = model / "vae" / "config.json"
    path.write_text("{")
    assert str(path) in refused(model)


# --- which folder ---


def spec(config: ModelConfig, *models_dirs: Path, folder: Path | None = None) -> ModelSpec:
    return ModelSpec(config=config, models_dirs=models_dirs, folder=folder)


def test_users_own_folder_comes_first_and_is_checked(model, tmp_path):
    (tmp_path / "models").mkdir()
    assert resolve_folder(spec(EDIT, tmp_path / "models", folder=model), NoCallbacks()) == model
    (model / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match="incomplete"):
        resolve_folder(spec(EDIT, tmp_path / "models", folder=model), NoCallbacks())


def test_first_models_folder_that_has_it_is_taken(model, tmp_path):
    second = tmp_path / "b" / "LongCat-Image-Edit"
    second.parent.mkdir()
    model.rename(second)
    assert resolve_folder(spec(EDIT, tmp_path / "a", tmp_path / "b"), NoCallbacks()) == second
    assert not (tmp_path / "a").exists()


def test_twin_is_written_once_and_again_for_other_weights(tmp_path):
    built = resolve_folder(spec(TINY, tmp_path), NoCallbacks())
    assert built == tmp_path / "tiny-edit"
    mark = (built / "model_index.json").stat().st_mtime_ns
    assert resolve_folder(spec(TINY, tmp_path), NoCallbacks()) == built
    assert (built / "model_index.json").stat().st_mtime_ns == mark
    (built / "twin.json").write_text('{"builder": 0}')
    resolve_folder(spec(TINY, tmp_path), NoCallbacks())
    assert (built / "model_index.json").stat().st_mtime_ns != mark


def test_each_twin_has_its_own_folder(tmp_path):
    for flavour in ("tiny", "tiny-edit"):
        built = resolve_folder(spec(ModelConfig(model_flavour=flavour), tmp_path), NoCallbacks())
        assert built == tmp_path / flavour


def test_somebodys_folder_of_that_name_is_not_overwritten(tmp_path):
    (tmp_path / "tiny-edit").mkdir()
    (tmp_path / "tiny-edit" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="move it away"):
        resolve_folder(spec(TINY, tmp_path), NoCallbacks())
    assert (tmp_path / "tiny-edit" / "notes.txt").read_text() == "mine"


# --- identity ---


def test_identity_follows_contents_not_places(tiny_checkpoint, model):
    for component in ("vae", "text_encoder", "transformer"):
        assert component_identity(model, component) == component_identity(tiny_checkpoint, component)


def test_identity_notices_weights_and_settings(model):
    before = component_identity(model, "vae")
    path = model / "vae" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = component_identity(model, "vae")
    edit_json(model / "vae" / "config.json", scaling_factor=1.0)
    assert len({before, changed, component_identity(model, "vae")}) == 3


def test_rotary_settings_in_both_spellings_are_those_in_the_newer_one(model):
    path = model / "text_encoder" / "config.json"
    both = json.loads(path.read_text(encoding="utf-8"))["text_config"]
    newer = {name: value for name, value in both.items() if name not in ("rope_scaling", "rope_theta")}
    identities = []
    for text_config in (both, newer, both | {"rope_theta": 1e4}, newer | {"rope_theta": 1e4}):
        edit_json(path, text_config=text_config)
        identities.append(component_identity(model, "text_encoder"))
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


@pytest.mark.parametrize("file", ["tokenizer/merges.txt", "text_processor/preprocessor_config.json"])
def test_text_encoders_identity_covers_what_prepares_its_inputs(model, file):
    before = component_identity(model, "text_encoder"), component_identity(model, "vae")
    with (model / file).open("a") as stream:
        stream.write("\n")
    assert component_identity(model, "text_encoder") != before[0]
    assert component_identity(model, "vae") == before[1]


# --- download, from a server on this machine that answers like the hub ---

REVISION = "0" * 40
DOWNLOAD = """
import json, sys
from pathlib import Path
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.errors import LongCatError
from comfyui_longcat.training.weights.spec import ModelSpec
from comfyui_longcat.training.weights.source import resolve_folder

class Listener:
    def __init__(self):
        self.events = []
    def on_event(self, event):
        self.events.append((event.stage, event.done, event.total))
    def should_stop(self):
        return "stop" in sys.argv and len(self.events) > 1

listener = Listener()
spec = ModelSpec(config=ModelConfig(model_flavour="edit"), models_dirs=(Path(sys.argv[1]),))
try:
    outcome = str(resolve_folder(spec, listener))
except LongCatError as error:
    outcome = f"{type(error).__name__}: {error}"
sys.stdout.write(json.dumps({"outcome": outcome, "events": listener.events}))
"""


class Hub(http.server.ThreadingHTTPServer):
    """The three answers of the hub that a download needs: the repository's data, its tree, its files."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubAnswers)
        self.folder = folder
        self.asked: list[str] = []
        self.fail_on = ""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def files(self) -> dict[str, Path]:
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return {**files, "transformer/pytorch_model.bin": files["model_index.json"]}


class HubAnswers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        name = path.partition(f"/resolve/{REVISION}/")[2]
        files = self.server.files()
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": "1" * 40} for n, f in files.items()]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": n, "size": f.stat().st_size} for n, f in files.items()]
            self.answer(json.dumps({"id": "x/y", "sha": REVISION, "siblings": siblings}).encode())
        elif name in files and not (self.server.fail_on and self.server.fail_on in name):
            self.server.asked.append(name)
            self.answer(files[name].read_bytes())
        else:
            self.send_error(404)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def fetch(models_dir: Path, endpoint: str, *arguments: str) -> dict:
    """Resolves the released flavour in another process, whose hub is `endpoint`."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(models_dir / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    result = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, str(models_dir), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "%|" not in result.stderr
    return json.loads(result.stdout)


def test_download_takes_what_is_needed_and_reports_bytes(tiny_checkpoint, tmp_path):
    with Hub(tiny_checkpoint) as hub:
        report = fetch(tmp_path, f"http://127.0.0.1:{hub.server_port}")
    folder = tmp_path / "LongCat-Image-Edit"
    assert report["outcome"] == str(folder)
    arrived = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {path.relative_to(tiny_checkpoint).as_posix() for path in tiny_checkpoint.rglob("*") if path.is_file()}
    assert arrived == wanted - {"twin.json"}
    assert all((folder / name).read_bytes() == (tiny_checkpoint / name).read_bytes() for name in arrived)
    assert not (tmp_path / "LongCat-Image-Edit.partial").exists()
    total = sum((folder / name).stat().st_size for name in arrived)
    assert report["events"][-1] == ["downloading meituan-longcat/LongCat-Image-Edit", total, total]
    assert "transformer/pytorch_model.bin" not in hub.asked


def test_broken_download_says_what_to_do_and_goes_on_later(tiny_checkpoint, tmp_path):
    with Hub(tiny_checkpoint) as hub:
        hub.fail_on = "text_encoder/model"
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        outcome = fetch(tmp_path, endpoint)["outcome"]
        assert outcome.startswith("ModelError: meituan-longcat/LongCat-Image-Edit could not be downloaded")
        assert str(tmp_path / "LongCat-Image-Edit") in outcome and "by hand" in outcome
        assert not (tmp_path / "LongCat-Image-Edit").exists()
        hub.fail_on = ""
        assert fetch(tmp_path, endpoint)["outcome"] == str(tmp_path / "LongCat-Image-Edit")


def test_stopped_download_leaves_no_model(tiny_checkpoint, tmp_path):
    with Hub(tiny_checkpoint) as hub:
        report = fetch(tmp_path, f"http://127.0.0.1:{hub.server_port}", "stop")
    assert report["outcome"].startswith("StoppedByUserError")
    assert not (tmp_path / "LongCat-Image-Edit").exists()


def test_unreachable_hub_is_a_model_error(tmp_path):
    outcome = fetch(tmp_path, "http://127.0.0.1:9")["outcome"]
    assert outcome.startswith("ModelError") and "pretrained_model_name_or_path" in outcome
