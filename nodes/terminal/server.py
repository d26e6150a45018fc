"""Sends a workflow to a running ComfyUI and shows its progress: POST /prompt, then the websocket."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.errors import LongCatError, PathError, StoppedByUserError
from ...training.files import parse_json
from ..graph.check import label
from ..graph.core_nodes import SAMPLE_PICTURE, draw_sample, input_picture, named_pictures
from .host import TerminalHost, say

if TYPE_CHECKING:
    import aiohttp

SECONDS_BETWEEN_STOP_CHECKS = 0.2

LARGEST_MESSAGE = 0
"""No limit: previews come as binary messages of any size."""


class ServerError(LongCatError):
    """The server cannot be reached, refuses the workflow, or a node failed there."""


async def run_on_server(url: str, graph: Mapping[str, Any], host: TerminalHost) -> list[str]:
    """Runs an API graph on the ComfyUI at `url`; returns lines about its results. Ctrl-C interrupts it there.

    Pictures that LoadImage names and that exist here are uploaded first; so is the sample picture.

    Raises:
        ServerError: see the class.
        StoppedByUserError: interrupted here or on the server.
    """
    import aiohttp

    base = (url if "://" in url else f"http://{url}").rstrip("/")
    client_id = uuid.uuid4().hex
    try:
        async with aiohttp.ClientSession() as session:
            remote = _Remote(session, base, dict(graph), host)
            address = f"{base.replace('http', 'ws', 1)}/ws?clientId={client_id}"
            # Listening begins before the prompt is sent, so that no message is missed.
            async with session.ws_connect(address, max_msg_size=LARGEST_MESSAGE, heartbeat=30) as socket:
                await remote.upload_pictures()
                await remote.submit(client_id)
                return await remote.follow(socket)
    except aiohttp.WSServerHandshakeError as error:
        raise ServerError(
            f"{base} answers {error.status} to a websocket; is it a ComfyUI? Check the address."
        ) from error
    except (aiohttp.ClientConnectionError, aiohttp.InvalidURL, asyncio.TimeoutError) as error:
        raise ServerError(
            f"{base} cannot be reached ({error}). Start ComfyUI, or correct --server, e.g. http://127.0.0.1:8188."
        ) from error


class _Remote:
    """One prompt on one server."""

    def __init__(self, session: aiohttp.ClientSession, base: str, graph: dict[str, Any], host: TerminalHost) -> None:
        self.session = session
        self.base = base
        self.graph = graph
        self.host = host
        self.prompt_id = ""
        self.started = False
        self.lines: list[str] = []
        self.bar = host.bar

    async def upload_pictures(self) -> None:
        for node_id, name in named_pictures(self.graph):
            with tempfile.TemporaryDirectory() as folder:
                path = self._local_picture(name, Path(folder))
                if path is None:
                    continue
                stored = await self._upload(path)
            inputs = {**self.graph[node_id]["inputs"], "image": stored}
            self.graph[node_id] = {**self.graph[node_id], "inputs": inputs}

    def _local_picture(self, name: str, folder: Path) -> Path | None:
        try:
            return input_picture(self.host, name)
        except PathError:
            if name != SAMPLE_PICTURE:
                # It may be on the server; if not, the server reports it.
                return None
        draw_sample(folder / name)
        return folder / name

    async def _upload(self, path: Path) -> str:
        """The name under which the server keeps the picture; it never replaces another one of that name."""
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("image", path.read_bytes(), filename=path.name, content_type="application/octet-stream")
        async with self.session.post(f"{self.base}/upload/image", data=form) as response:
            if response.status != 200:
                raise ServerError(
                    f"{self.base} refused the picture {path} ({response.status}). Put it into its input folder."
                )
            stored = parse_json(await response.read(), f"The answer of {self.base}", ServerError, "Is it a ComfyUI?")
        if not isinstance(stored.get("name"), str):
            raise ServerError(f"{self.base} took the picture {path} without saying where it lies. Is it a ComfyUI?")
        return f"{stored['subfolder']}/{stored['name']}" if stored.get("subfolder") else stored["name"]

    async def submit(self, client_id: str) -> None:
        body = {"prompt": self.graph, "client_id": client_id}
        async with self.session.post(f"{self.base}/prompt", json=body) as response:
            content = await response.read()
        try:
            answer = parse_json(content, f"The answer of {self.base}", ServerError, "")
        except ServerError:
            answer = {}
        self.prompt_id = str(answer.get("prompt_id") or "")
        # 200 with node_errors means that only a part of the workflow would run.
        if response.status != 200 or answer.get("node_errors") or not self.prompt_id:
            if self.prompt_id:
                await self._cancel()
            raise ServerError(_refusal(self.base, response.status, answer, self.graph))
        say(f"queued on {self.base} as {self.prompt_id}")

    async def follow(self, socket: aiohttp.ClientWebSocketResponse) -> list[str]:
        """Shows messages until the prompt ends."""
        listening = asyncio.create_task(self._listen(socket))
        stopping = asyncio.create_task(self._interrupt_when_asked())
        try:
            await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not listening.done():
                await stopping
                if not self.started:
                    raise StoppedByUserError("Removed from the server's queue.")
            await listening
        finally:
            self.bar.close()
            for task in (listening, stopping):
                task.cancel()
        return self.lines

    async def _interrupt_when_asked(self) -> None:
        while not self.host.stop.is_set():
            await asyncio.sleep(SECONDS_BETWEEN_STOP_CHECKS)
        await self._cancel()

    async def _cancel(self) -> None:
        """Removes the prompt from the queue, or interrupts it if it is the one that runs."""
        for route, body in (("queue", {"delete": [self.prompt_id]}), ("interrupt", {"prompt_id": self.prompt_id})):
            async with self.session.post(f"{self.base}/{route}", json=body):
                pass

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        import aiohttp

        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                kind, content = self._read(message.data)
                if content.get("prompt_id") == self.prompt_id and self._on_event(kind, content):
                    return
        raise ServerError(
            f"The connection to {self.base} ended. If the server still runs, the workflow continues there. Run the same"
            " command again to follow it; training resumes where it is."
        )

    def _read(self, message: str) -> tuple[Any, Mapping[str, Any]]:
        """(type, data) of a message; other packs send messages of their own, which need not be readable."""
        try:
            event = parse_json(message, f"A message of {self.base}", ServerError, "It is passed over.")
        except ServerError as error:
            say(str(error))
            return None, {}
        return event.get("type"), _mapping(event.get("data"))

    def _on_event(self, kind: Any, content: Mapping[str, Any]) -> bool:
        """Shows one message; whether the prompt ended well."""
        if kind == "execution_start":
            self.started = True
        elif kind == "executing" and content.get("node"):
            self._begin(content["node"])
        elif kind == "progress":
            self.bar.show(self._label(content.get("node")), content.get("value", 0), content.get("max", 1))
        elif kind == "execution_cached":
            for node in content.get("nodes") or ():
                say(f"{self._label(node)}: unchanged, from the server's cache")
        elif kind == "executed":
            self.lines += _made(self._label(content.get("node")), _mapping(content.get("output")))
        elif kind == "execution_interrupted":
            raise StoppedByUserError(f"Interrupted at {self._label(content.get('node_id'))}.")
        elif kind == "execution_error":
            raise ServerError(
                f"{self._label(content.get('node_id'))} failed on the server:"
                f" {str(content.get('exception_message', '')).strip()} ({content.get('exception_type', 'error')})"
            )
        return kind == "execution_success"

    def _begin(self, node: str) -> None:
        self.bar.close()
        say(self._label(node))

    def _label(self, node_id: Any) -> str:
        node = self.graph.get(str(node_id))
        return label(str(node_id), node) if node else f"node {node_id}"


def _refusal(base: str, status: int, answer: Mapping[str, Any], graph: Mapping[str, Any]) -> str:
    lines = [f"{base} refused the workflow (HTTP {status}):"]
    error = answer.get("error")
    if isinstance(error, Mapping):
        lines.append(f"- {_joined(error)}")
    for node_id, faults in _mapping(answer.get("node_errors")).items():
        where = label(node_id, graph.get(node_id, {"class_type": _mapping(faults).get("class_type", "?")}))
        # A node's own refusal comes once for each of the inputs it has looked at.
        lines += dict.fromkeys(f"- {where}: {_joined(_mapping(f))}" for f in _mapping(faults).get("errors") or ())
    if error is None and not answer.get("node_errors"):
        lines.append("- no reason given; is it a ComfyUI of version 0.29 or newer?")
    return "\n".join(lines)


def _joined(error: Mapping[str, Any]) -> str:
    if error.get("type") == "custom_validation_failed":
        name, dash, reason = str(error.get("details", "")).partition(" - ")
        return reason if dash else name
    return ": ".join(str(text) for text in (error.get("message"), error.get("details")) if text)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _made(where: str, output: Mapping[str, Any]) -> list[str]:
    """Lines about a node's pictures and texts."""
    lines = []
    for files in output.values():
        for file in files if isinstance(files, list) else ():
            if isinstance(file, Mapping) and "filename" in file:
                parts = (file.get("type", "output"), file.get("subfolder", ""), file["filename"])
                lines.append(f"{where}: {'/'.join(part for part in parts if part)}")
            elif isinstance(file, str):
                lines.append(f"{where}: {file}")
    return lines
