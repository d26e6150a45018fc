"""docs/configuration.md names every key, and the places in it are inputs of nodes."""

import re

from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.from_config import NODE_OF, widget_fields
from comfyui_longcat.nodes.graph.key_table import configuration_page
from comfyui_longcat.nodes.graph.signature import signature_of
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.simpletuner.keys import CONFIG_KEYS, DATA_KEYS


def test_every_key_is_named():
    page = configuration_page()
    for name in (*CONFIG_KEYS, *DATA_KEYS):
        assert f"`{name}`" in page


def test_places_are_inputs_of_nodes(tmp_path):
    with use_host(TerminalHost(tmp_path)):
        inputs = {name: {spec.name for spec in signature_of(kind).inputs} for name, kind in node_classes().items()}
    for kind, node in NODE_OF.items():
        assert set(widget_fields(kind)) <= inputs[node]
    for node, name in re.findall(r"\| (\w+)\.(\w+)", configuration_page()):
        assert name in inputs[node], f"{node}.{name}"
