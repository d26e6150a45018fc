"""ComfyUI's page in a headless Chromium, spoken to over the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

START_SECONDS = 180

LOADED = """!!(window.app?.rootGraph && window.LiteGraph?.registered_node_types.TrainLoRA
    && LiteGraph.registered_node_types.Reroute && LiteGraph.registered_node_types.PrimitiveNode)"""

ASK = """(async (workflow) => {
    const errors = [];
    const log = console.error;
    console.error = (...parts) => errors.push(parts.map(String).join(" "));
    try {
        await app.loadGraphData(workflow, true, false, null,
            { skipAssetScans: true, deferWarnings: true, silentAssetErrors: true });
        await new Promise((done) => setTimeout(done, 50));
        const { output } = await app.graphToPrompt();
        return JSON.stringify({ output, errors });
    } catch (error) {
        return JSON.stringify({ output: null, errors: [...errors, String(error)] });
    } finally {
        console.error = log;
    }
})(%s)"""
"""Loads a workflow as the page does when a file is dropped on it, and makes what it would queue."""


def queued_by_page(url: str, workflows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{"output": API graph or None, "errors": the page's} for each of the workflows."""
    return asyncio.run(_queued(url, workflows))


async def _queued(url: str, workflows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
    ]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM or "chromium", *options, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = await answer.json()
                address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    return await _ask(_Page(socket), url, workflows.items())
        finally:
            process.terminate()
            process.wait(timeout=30)


async def _port(file: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        lines = file.read_text().splitlines() if file.is_file() else []
        if len(lines) > 1:
            return lines[0]
        await asyncio.sleep(0.1)
    raise AssertionError(f"Chromium did not start in {START_SECONDS} s")


async def _ask(page: _Page, url: str, workflows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    await page.call("Page.navigate", url=url)
    end = time.monotonic() + START_SECONDS
    while not await page.value(LOADED):
        assert time.monotonic() < end, f"ComfyUI's page was not ready in {START_SECONDS} s"
        await asyncio.sleep(0.2)
    # The page opens its own first workflow; ours must not come before it.
    await asyncio.sleep(3)
    return {name: json.loads(await page.value(ASK % json.dumps(workflow))) for name, workflow in workflows}


class _Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.calls = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.calls += 1
        await self.socket.send_json({"id": self.calls, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json()
            if message.get("id") == self.calls:
                assert "error" not in message, message
                return message["result"]

    async def value(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        # While the page changes there is no value.
        return answer["result"].get("value")
