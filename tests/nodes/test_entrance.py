"""Every socket of every node: what is typed into it, or of another type, is refused in one sentence."""

import pytest
from comfyui_longcat.nodes import NODES
from comfyui_longcat.nodes.data import PairDatasets
from comfyui_longcat.nodes.entrance import WIDGETS
from comfyui_longcat.nodes.train import LongCatTrainingOptions, TrainLoRA
from comfyui_longcat.training.errors import ConfigError, DiskError
from comfyui_longcat.training.settings.dataset import DatasetConfig


def inputs_of(node):
    declared = node.INPUT_TYPES()
    return {**declared["required"], **declared.get("optional", {})}


SOCKETS = [
    (node_id, name)
    for node_id, node in NODES.items()
    for name, (kind, _) in inputs_of(node).items()
    if isinstance(kind, str) and kind not in WIDGETS
]


def run(node, **inputs):
    return getattr(node(), node.FUNCTION)(**inputs)


@pytest.mark.parametrize(("node_id", "socket"), SOCKETS)
@pytest.mark.parametrize("value", ["x", 7, {"a": 1}, [["1", 0]], DatasetConfig, object()])
def test_what_no_link_carries_is_refused_by_name(node_id, socket, value, monkeypatch):
    node = NODES[node_id]
    declared = node.INPUT_TYPES()
    # Those before it in the declaration are refused first, so only this one is declared.
    only = {"required": {socket: inputs_of(node)[socket]}}
    others = {name: None for name in declared["required"] if name != socket}
    monkeypatch.setattr(node, "INPUT_TYPES", classmethod(lambda cls: only))
    with pytest.raises(ConfigError) as caught:
        run(node, **others, **{socket: value})
    message = str(caught.value)
    assert message.startswith(f"{socket} ({node.DISPLAY_NAME}) is ") and "must be wired from " in message
    assert message.count(". ") == 0 and len(message) < 300


def test_the_message_names_the_nodes_to_wire():
    with pytest.raises(ConfigError) as caught:
        PairDatasets().pair("x", DatasetConfig())
    assert str(caught.value) == "targets (Pair Datasets) is 'x'; it must be wired from LongCat Dataset."
    with pytest.raises(ConfigError, match=r"wired from Pair Datasets or Join Datasets|LongCat Dataset or Pair"):
        run(NODES["LongCatJoinDatasets"], first="x" * 1000)


def test_a_required_socket_that_carries_nothing_is_refused_too():
    with pytest.raises(ConfigError, match="model.*is None"):
        run(TrainLoRA, model=None, cache=None)


def test_every_node_has_the_entrance():
    for node in NODES.values():
        assert hasattr(getattr(node, node.FUNCTION), "__wrapped__"), node


def test_a_full_disk_at_any_node_is_said_by_the_entrance(monkeypatch):
    def full(*_args, **_settings):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("comfyui_longcat.nodes.train.configured", full)
    with pytest.raises(DiskError, match=r"The disk is full.*\(LongCat Training Options\).*somewhere"):
        run(LongCatTrainingOptions)
