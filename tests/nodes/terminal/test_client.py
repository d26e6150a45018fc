"""`longcat run --server` against a small server that speaks ComfyUI's protocol."""

import asyncio
import contextlib

import pytest
from aiohttp import WSMsgType, web
from comfyui_longcat.nodes.graph.catalogue import longcat_image_edit_sample
from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.description import to_api
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.nodes.terminal.server import ServerError, run_on_server
from comfyui_longcat.training.errors import StoppedByUserError

PROMPT_ID = "6f9b4a52-0000-4000-8000-000000000000"

SUCCESS = (
    ("status", {"status": {"exec_info": {"queue_remaining": 1}}}),
    ("execution_start", {}),
    ("execution_cached", {"nodes": ["1"]}),
    ("executing", {"node": "5"}),
    ("progress", {"node": "5", "value": 1, "max": 2}),
    # Another user's prompt on the same server must not end ours.
    ("execution_error", {"prompt_id": "another", "node_id": "5", "exception_message": "theirs"}),
    ("progress", {"node": "5", "value": 2, "max": 2}),
    ("executed", {"node": "6", "output": {"images": [{"filename": "a.png", "subfolder": "s", "type": "output"}]}}),
    ("execution_success", {}),
)


class FakeComfy:
    """Plays back messages after POST /prompt; keeps what it was sent."""

    def __init__(self, messages=SUCCESS, answer=None, status=200):
        self.messages = messages
        self.answer = answer or {"prompt_id": PROMPT_ID, "number": 1, "node_errors": {}}
        self.status = status
        self.prompts, self.uploads, self.posts = [], [], []
        self.queued = asyncio.Event()
        self.interrupted = asyncio.Event()

    async def socket(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await self.queued.wait()
        await socket.send_bytes(b"\x00\x00\x00\x01preview")
        for kind, content in self.messages:
            if kind == "wait for interrupt":
                await self.interrupted.wait()
            elif kind == "hang up":
                await socket.close()
            elif kind == "raw":
                await socket.send_str(content)
            else:
                await socket.send_json({"type": kind, "data": {"prompt_id": PROMPT_ID} | content})
        with contextlib.suppress(asyncio.TimeoutError):
            while (await socket.receive(timeout=5)).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING):
                pass
        return socket

    async def prompt(self, request):
        self.prompts.append(await request.json())
        self.queued.set()
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, status=self.status)
        return web.json_response(self.answer, status=self.status)

    async def upload(self, request):
        form = await request.post()
        assert isinstance(form["image"], web.FileField)
        self.uploads.append((form["image"].filename, form["image"].file.read()))
        return web.json_response({"name": f"stored {form['image'].filename}", "subfolder": "", "type": "input"})

    async def post(self, request):
        self.posts.append((request.path, await request.json()))
        if request.path == "/interrupt":
            self.interrupted.set()
        return web.Response()

    @contextlib.asynccontextmanager
    async def serve(self):
        app = web.Application()
        app.router.add_get("/ws", self.socket)
        app.router.add_post("/prompt", self.prompt)
        app.router.add_post("/upload/image", self.upload)
        app.router.add_post("/interrupt", self.post)
        app.router.add_post("/queue", self.post)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.fixture
def host(tmp_path):
    return TerminalHost(tmp_path)


@pytest.fixture
def graph(host):
    with use_host(host):
        return to_api(longcat_image_edit_sample(), node_classes())


def _run(graph, host, *, stop_after=None, **settings):
    async def go():
        server = FakeComfy(**settings)
        async with server.serve() as url:
            if stop_after is not None:
                asyncio.get_running_loop().call_later(stop_after, host.stop.set)
            try:
                return server, await asyncio.wait_for(run_on_server(url, graph, host), 20)
            except (ServerError, StoppedByUserError) as error:
                return server, error

    return asyncio.run(go())


def test_success(graph, host, capsys):
    server, lines = _run(graph, host)
    assert lines == ['node 6 "Result" (SaveImage): output/s/a.png']
    shown = capsys.readouterr().err
    assert 'node 5 "Edit the picture" (LongCatSampleEdit)' in shown
    assert "2/2" in shown and "cache" in shown
    (sent,) = server.prompts
    assert sent["client_id"]
    assert sent["prompt"].keys() == graph.keys()


def test_the_sample_picture_is_drawn_and_uploaded(graph, host):
    server, _ = _run(graph, host)
    ((name, content),) = server.uploads
    assert name == "example.png" and content.startswith(b"\x89PNG")
    loaded = next(n for n in server.prompts[0]["prompt"].values() if n["class_type"] == "LoadImage")
    assert loaded["inputs"]["image"] == "stored example.png"
    assert graph["3"]["inputs"]["image"] == "example.png", "the caller's graph was changed"
    assert not host.input_dir().exists()


def test_own_pictures_are_uploaded_and_others_left_to_the_server(graph, host):
    own = host.home / "mine.png"
    own.write_bytes(b"bytes")
    graph["3"]["inputs"]["image"] = str(own)
    server, _ = _run(graph, host)
    assert server.uploads == [("mine.png", b"bytes")]
    graph["3"]["inputs"]["image"] = "only-there.png"
    server, _ = _run(graph, host)
    assert server.uploads == []


NODE_ERRORS = {
    "5": {
        "class_type": "LongCatSampleEdit",
        "errors": [{"type": "value_bigger_than_max", "message": "Value too big", "details": "num_inference_steps"}],
    }
}


def test_refusal_names_every_fault(graph, host):
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""}
    _, raised = _run(graph, host, answer={"error": error, "node_errors": NODE_ERRORS}, status=400)
    assert isinstance(raised, ServerError)
    assert 'node 5 "Edit the picture" (LongCatSampleEdit): Value too big: num_inference_steps' in str(raised)
    assert "Prompt outputs failed validation" in str(raised)


def test_accepting_only_a_part_is_a_refusal(graph, host):
    answer = {"prompt_id": PROMPT_ID, "number": 1, "node_errors": NODE_ERRORS}
    server, raised = _run(graph, host, answer=answer)
    assert isinstance(raised, ServerError)
    assert "Value too big" in str(raised)
    assert ("/queue", {"delete": [PROMPT_ID]}) in server.posts


def test_execution_error_names_the_node(graph, host):
    failure = {"node_id": "5", "exception_message": "Out of memory\n", "exception_type": "torch.OutOfMemoryError"}
    _, raised = _run(graph, host, messages=(("execution_start", {}), ("execution_error", failure)))
    assert isinstance(raised, ServerError)
    assert "node 5" in str(raised) and "Out of memory (torch.OutOfMemoryError)" in str(raised)


def test_ctrl_c_interrupts_this_prompt_on_the_server(graph, host):
    messages = (
        ("execution_start", {}),
        ("wait for interrupt", {}),
        ("execution_interrupted", {"node_id": "5"}),
    )
    server, raised = _run(graph, host, messages=messages, stop_after=0.5)
    assert isinstance(raised, StoppedByUserError)
    assert ("/interrupt", {"prompt_id": PROMPT_ID}) in server.posts


def test_ctrl_c_takes_a_waiting_prompt_out_of_the_queue(graph, host):
    server, raised = _run(graph, host, messages=(), stop_after=0.5)
    assert isinstance(raised, StoppedByUserError)
    assert ("/queue", {"delete": [PROMPT_ID]}) in server.posts


def test_lost_connection_says_that_the_run_may_go_on(graph, host):
    _, raised = _run(graph, host, messages=(("execution_start", {}), ("hang up", {})))
    assert isinstance(raised, ServerError)
    assert "Run the same command again" in str(raised)


UNREADABLE = ("[" * 100_000, "{", '{"type": "progress", "data": {"value": NaN}}', "7", '{"data": [1]}', '{"type": 1}')


def test_messages_that_cannot_be_read_are_passed_over(graph, host, capsys):
    _, lines = _run(graph, host, messages=(*(("raw", text) for text in UNREADABLE), *SUCCESS))
    assert lines == ['node 6 "Result" (SaveImage): output/s/a.png']
    shown = capsys.readouterr().err
    assert shown.count("A message of http://127.0.0.1:") == 4 and "passed over" in shown


@pytest.mark.parametrize("answer", [b"[" * 100_000, b"<html>", b"\xff", b'{"prompt_id": ""}', b'{"node_errors": [1]}'])
def test_answers_that_are_not_comfyuis(graph, host, answer):
    _, raised = _run(graph, host, answer=answer)
    assert isinstance(raised, ServerError)
    assert "refused the workflow (HTTP 200)" in str(raised)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[broken"])
def test_no_server(graph, host, url):
    with pytest.raises(ServerError, match="reached|address"):
        asyncio.run(run_on_server(url, graph, host))


def test_something_else_than_comfyui(graph, host):
    async def go():
        runner = web.AppRunner(web.Application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            await run_on_server(f"http://127.0.0.1:{runner.addresses[0][1]}", graph, host)
        finally:
            await runner.cleanup()

    with pytest.raises(ServerError, match="is it a ComfyUI"):
        asyncio.run(go())
