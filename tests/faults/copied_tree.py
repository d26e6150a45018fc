"""A copy of the working tree in which files can be changed and tests be run, quickly and many times over.

The libraries are imported once. Each run is a fork that imports only the package, as it is in the copy at that time.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "comfyui_longcat"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run of tests."""

    ended: bool
    """False: it took too long, or the process died."""
    failed: tuple[str, ...] = ()
    """Node ids of the tests whose own body failed."""
    broken: tuple[str, ...] = ()
    """Those that could not be run: their file, or a fixture of theirs, failed."""
    passed: int = 0
    text: str = ""
    """What pytest printed."""


class CopiedTree:
    """All files that git tracks or would track, as they are now, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Copies, and stops the program if the tests of the copy would test something else."""
        if not hasattr(os, "fork"):
            sys.exit("This needs Linux or macOS: Windows cannot fork processes.")
        os.nice(10)
        self.folder = folder / PACKAGE
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.folder / name)
        # Without bytecode: a file that is changed twice in a second may keep its date and size.
        settings = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        os.environ.update(settings, PYTHONPATH=path)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        _import_libraries()

    def read(self, file: str) -> str:
        return (self.folder / file).read_text(encoding="utf-8")

    @contextlib.contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """Inside, `file` of the copy has another text."""
        right = self.read(file)
        try:
            (self.folder / file).write_text(text, encoding="utf-8")
            yield
        finally:
            (self.folder / file).write_text(right, encoding="utf-8")

    def run(self, arguments: Sequence[str], seconds: float | None = None, until: Collection[str] = ()) -> Outcome:
        """Runs pytest in the copy.

        Args:
            seconds: after which it is ended.
            until: node ids without parameters; when all of them have failed, the rest is left out.
        """
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=_run, args=(sender, self.folder, list(arguments), set(until)))
        child.start()
        sender.close()
        try:
            found = receiver.recv_bytes() if receiver.poll(seconds) else None
        except EOFError:
            found = None
        if found is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.join()
        if found is None:
            return Outcome(ended=False)
        values = json.loads(found)
        return Outcome(ended=True, **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


class _Listener:
    """A plugin of pytest that keeps which tests are red."""

    def __init__(self, until: set[str]) -> None:
        self._until = until
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.passed = 0

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            (self.failed if report.when == "call" else self.broken).append(report.nodeid)
        self.passed += report.passed and report.when == "call"
        if self._until and self._until <= {node.partition("[")[0] for node in self.failed}:
            self._session.shouldfail = "all that was waited for"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(report.nodeid)


def _run(sender: Connection, tree: Path, arguments: list[str], until: set[str]) -> None:
    os.setsid()
    os.chdir(tree)
    listener, text = _Listener(until), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = pytest.main([*arguments, "-q", "--tb=short", "-p", "no:cacheprovider"], plugins=[listener])
    tested = getattr(sys.modules.get(PACKAGE), "__file__", None)
    if tested is not None and not tested.startswith(str(tree)):
        listener.broken.append(f"Not the copy in {tree} was tested, but {tested}.")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not listener.broken:
        listener.broken.append(f"pytest ended with {code!r}.")
    found = {name: value for name, value in vars(listener).items() if not name.startswith("_")}
    sender.send_bytes(json.dumps({**found, "text": text.getvalue()[-20_000:]}).encode())


def _import_libraries() -> None:
    """Those that take long, and the parts of them that they would import later."""
    import av  # noqa: F401
    import diffusers
    import peft  # noqa: F401
    import torch
    import transformers

    with contextlib.suppress(ImportError):
        import optimum.quanto  # noqa: F401
    for name in ("AutoencoderKL", "AutoencoderKLWan", "LongCatImageTransformer2DModel", "get_scheduler"):
        getattr(diffusers, name, None)
    for name in ("Qwen2_5_VLForConditionalGeneration", "UMT5EncoderModel", "AutoTokenizer", "AutoImageProcessor"):
        getattr(transformers, name)
    torch.set_num_threads(1)
