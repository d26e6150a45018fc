"""The files in the repository are what `make workflows` writes."""

import pytest
from comfyui_longcat.nodes.graph.help_page import MARKER, help_page
from comfyui_longcat.nodes.terminal.generate import generated_files


@pytest.fixture(scope="module")
def generated():
    return generated_files()


def test_generated_files_are_up_to_date(generated, repository):
    for path, text in generated.items():
        written = (repository / path).read_bytes().replace(b"\r\n", b"\n")
        assert written == text.encode("utf-8"), f"{path} is out of date: run `make workflows`"


def test_every_workflow_is_generated(generated, repository):
    found = {path.relative_to(repository) for path in (repository / "workflows").rglob("*.json")}
    assert found == {path for path in generated if path.parts[0] == "workflows"}


def test_help_page_keeps_its_text_and_follows_the_node():
    steps = {"default": 16, "min": 16, "max": 64, "step": 16, "tooltip": "How many."}
    rate = {"default": 5e-5, "min": 0.0, "max": 1e9, "step": 0.1, "tooltip": "How fast."}
    required = {
        "steps": ("INT", steps),
        "rate": ("FLOAT", rate),
        "kind": (["one", "two"], {"default": "two", "tooltip": "Which <name>.", "advanced": True}),
        "name": ("STRING", {"default": "", "tooltip": "Its name."}),
    }

    class Node:
        DISPLAY_NAME = "A node"
        DESCRIPTION = "Does something."
        RETURN_TYPES = ("IMAGE",)
        OUTPUT_TOOLTIPS = ("A picture *with* a star.",)
        INPUT_TYPES = staticmethod(lambda: {"required": required, "optional": {"data": ("A,B", {"tooltip": "More."})}})

    made = """
## Inputs
- **steps** (whole number from 16 to 64 in steps of 16; default 16): How many.
- **rate** (number from 0; default 0.00005): How fast.
- **kind** (`one` or `two`; default `two`; advanced): Which \\<name>.
- **name** (text; default empty): Its name.
- **data** (`A` or `B`; optional): More.

## Outputs
- **IMAGE** (`IMAGE`): A picture \\*with\\* a star.
"""
    assert help_page("", Node) == f"# A node\n\nDoes something.\n\n{MARKER}\n{made}"
    assert help_page(f"By hand.\n\n{MARKER}\nold", Node) == f"By hand.\n\n{MARKER}\n{made}"
