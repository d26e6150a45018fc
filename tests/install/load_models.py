"""Chooses the model of every workflow that is named, and stores small layers in each precision it asks for.

Run by test_requirements.py with the Python of a user's installation, which has no pytest.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.settings.model import QUANTISED_PRECISIONS
from comfyui_longcat.training.weights.quantisation import quantise


def store(precision: str) -> None:
    """Quantises two linears and computes with them."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).to(torch.bfloat16)
    pixels = torch.ones(1, 64, dtype=torch.bfloat16)
    whole = layers(pixels)
    quantise(layers, precision)
    error = (layers(pixels) - whole).norm() / whole.norm()
    assert 0 < error < 0.05, f"{precision}: relative error {error}"


def main() -> None:
    """Prints a line for each workflow: its model and precisions."""
    for path in map(Path, sys.argv[1:]):
        graph = json.loads(path.read_text(encoding="utf-8"))
        (choice,) = (node["inputs"] for node in graph.values() if node["class_type"] == "LoadLongCat")
        config = LoadLongCat().load(**choice)[0].spec.config
        precisions = (config.base_model_precision, config.text_encoder_1_precision)
        for precision in set(precisions) & set(QUANTISED_PRECISIONS):
            store(precision)
        print(path.stem, config.model_family, config.model_flavour, *precisions)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home, use_host(TerminalHost(Path(home), device="cpu")):
        main()
