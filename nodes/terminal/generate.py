"""`make workflows`: writes the files that are made from the code.

These are the shipped workflows, docs/configuration.md, and in the help pages the lists of inputs and outputs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ...training.files import replacing
from .. import NODES
from ..graph.catalogue import WORKFLOWS
from ..graph.core_nodes import node_classes
from ..graph.description import to_api
from ..graph.help_page import help_page
from ..graph.key_table import configuration_page
from ..graph.ui import to_ui
from ..host import use_host
from .host import TerminalHost

ROOT = Path(__file__).resolve().parents[2]


def generated_files() -> dict[Path, str]:
    """Text of every generated file by its path relative to the repository."""
    files = {Path("docs/configuration.md"): configuration_page()}
    # An empty home, so that no file of this machine gets into a list of choices.
    with tempfile.TemporaryDirectory() as home, use_host(TerminalHost(Path(home))):
        for name, build in WORKFLOWS.items():
            graph, classes = build(), node_classes()
            files[Path(f"workflows/{name}.json")] = _json(to_ui(graph, classes))
            files[Path(f"workflows/api/{name}.json")] = _json(to_api(graph, classes))
        for node_id, node_class in NODES.items():
            path = Path(f"js/docs/{node_id}.md")
            written = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
            files[path] = help_page(written, node_class)
    return files


def _json(workflow: dict[str, Any]) -> str:
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path, text in generated_files().items():
        with replacing(ROOT / path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
