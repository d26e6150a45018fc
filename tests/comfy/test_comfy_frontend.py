"""Saved workflows become the API graph that ComfyUI's own page makes of them."""

import json
import os

import pytest
from comfyui_longcat.nodes.graph.catalogue import WORKFLOWS
from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.from_ui import api_of_ui
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.tests.comfy.browser import CHROMIUM, queued_by_page
from comfyui_longcat.tests.nodes.graph.saved_workflows import compared, saved_workflows, store_answers, stored_answers

pytestmark = [
    pytest.mark.comfy,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; install the package chromium"),
]

STORE = "LONGCAT_STORE_FRONTEND_ANSWERS"
"""Environment variable: 1 writes what the page answers into the file that the tests without it read."""


@pytest.fixture(scope="module")
def workflows(repository):
    shipped = {
        name: json.loads((repository / "workflows" / f"{name}.json").read_text(encoding="utf-8")) for name in WORKFLOWS
    }
    return {**shipped, **saved_workflows()}


@pytest.fixture(scope="module")
def answers(server, workflows):
    return queued_by_page(server.url, workflows)


def test_page_and_terminal_make_the_same_graph(answers, workflows, tmp_path):
    assert {name: answer["errors"] for name, answer in answers.items() if answer["errors"]} == {}
    with use_host(TerminalHost(tmp_path)):
        for name, workflow in workflows.items():
            ours = api_of_ui(workflow, name, node_classes())
            assert compared(ours, workflow) == compared(answers[name]["output"], workflow), name


def test_stored_answers_are_the_pages(answers):
    live = {name: answers[name]["output"] for name in saved_workflows()}
    if os.environ.get(STORE) == "1":
        store_answers(live)
    stored = stored_answers()
    assert stored.keys() == live.keys()
    for name, workflow in saved_workflows().items():
        assert compared(stored[name], workflow) == compared(live[name], workflow), name
