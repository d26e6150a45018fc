"""A real ComfyUI server for the tests marked `comfy`; without an installation they are skipped."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 600
PACK_FOLDER = "ComfyUI-LongCat"


@dataclass(frozen=True)
class Comfy:
    """An installation."""

    path: Path
    python: str


@dataclass(frozen=True)
class Server:
    """A running server and its base folder."""

    url: str
    base: Path
    log: Path

    def get(self, route: str):
        with urllib.request.urlopen(f"{self.url}{route}", timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, route: str, content: dict):
        """The JSON answer (None if empty); an error status is an answer too."""
        request = urllib.request.Request(
            f"{self.url}{route}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        return json.loads(body) if body else None

    def queue(self, graph: dict) -> str:
        answer = self.post("/prompt", {"prompt": graph})
        assert answer.get("node_errors") == {}, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 1200) -> dict:
        """The history entry of a prompt that has ended, well or not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if history:
                return history[prompt_id]
            time.sleep(0.05)
        raise AssertionError(f"{prompt_id} did not end in {seconds} s; the log ends:\n{self.log_end()}")

    def run(self, graph: dict) -> dict:
        """Outputs of the finished prompt, by node."""
        entry = self.wait(self.queue(graph))
        assert entry["status"]["status_str"] == "success", f"{self.error_of(entry)}\n{self.log_end()}"
        return entry["outputs"]

    @staticmethod
    def error_of(entry: dict) -> str:
        """The error message of a history entry; empty if there is none."""
        errors = (content for kind, content in entry["status"]["messages"] if kind == "execution_error")
        return next((content["exception_message"] for content in errors), "")

    def log_end(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@pytest.fixture(scope="session")
def comfy() -> Comfy:
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (path / "main.py").is_file():
        pytest.skip(f"no ComfyUI at {path}; set COMFYUI_PATH")
    beside = path.parent / "venv" / "bin" / "python"
    python = os.environ.get("COMFYUI_PYTHON") or (str(beside) if beside.is_file() else sys.executable)
    return Comfy(path=path, python=python)


@pytest.fixture(scope="session")
def start(comfy: Comfy, repository: Path) -> Callable[[Path], AbstractContextManager[Server]]:
    """Starts a server in a base folder; that takes some ten seconds."""
    return functools.partial(_started, comfy, repository)


@pytest.fixture(scope="module")
def server(start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for each test file, in a base folder of its own."""
    with start(tmp_path_factory.mktemp("comfy")) as server:
        yield server


@contextlib.contextmanager
def _started(comfy: Comfy, repository: Path, base: Path) -> Iterator[Server]:
    """A server with the pack, and with what else lies in custom_nodes of `base`."""
    (base / "custom_nodes").mkdir(exist_ok=True)
    (base / "custom_nodes" / PACK_FOLDER).symlink_to(repository, target_is_directory=True)
    port = _free_port()
    log = base / "server.log"
    options = ["--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    options += ["--database-url", "sqlite:///:memory:", "--preview-method", "latent2rgb"]
    # Tiny matrices: more threads only wait for each other, the longer the busier the machine is.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LONGCAT_DATA_ROOTS": str(base / "owner" / "by_variable")}
    roots_file = base / "user" / "__longcat" / "longcat_data_roots.txt"
    roots_file.parent.mkdir(parents=True)
    roots_file.write_text(f"{base / 'owner' / 'by_file'}\n", encoding="utf-8")
    command = [comfy.python, "main.py", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=comfy.path, env=environment, stdout=output, stderr=subprocess.STDOUT)
    server = Server(url=f"http://127.0.0.1:{port}", base=base, log=log)
    try:
        _wait_until_up(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: Server, process: subprocess.Popen) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"ComfyUI ended while starting:\n{server.log_end()}"
        try:
            server.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"ComfyUI did not start in {START_SECONDS} s:\n{server.log_end()}")
