"""Help pages (js/docs/<node>.md): people write the text, the lists of inputs and outputs come from the node."""

from __future__ import annotations

import re
from typing import Any

from .signature import InputSpec, signature_of

MARKER = "<!-- `make workflows` writes the rest of this page from the node's inputs and outputs. -->"

UNBOUNDED = 1e9
"""A larger maximum is only there because a widget needs one."""


def help_page(written: str, node_class: type) -> str:
    """The page with everything below its marker written again; `written` is the page as it is now, or ""."""
    text, marker, _ = (written or f"# {node_class.DISPLAY_NAME}\n\n{node_class.DESCRIPTION}\n").partition(MARKER)
    signature = signature_of(node_class)
    inputs = [f"- **{spec.name}** ({_facts(spec)}): {_plain(spec.options['tooltip'])}" for spec in signature.inputs]
    outputs = [
        f"- **{output.name}** ({_type(output.type)}): {_plain(tooltip)}"
        for output, tooltip in zip(signature.outputs, node_class.OUTPUT_TOOLTIPS, strict=True)
    ]
    return "\n".join([text.rstrip(), "", MARKER, "", "## Inputs", *inputs, "", "## Outputs", *outputs, ""])


def _facts(spec: InputSpec) -> str:
    """`whole number from 1 to 256; default 1`"""
    if not spec.is_widget:
        return _type(spec.type) + ("" if spec.required else "; optional")
    facts = [_kind(spec), f"default {_value(spec.default)}", "advanced" if spec.options.get("advanced") else ""]
    return "; ".join(filter(None, facts))


def _kind(spec: InputSpec) -> str:
    if spec.choices is not None:
        # A list of one is filled with the files of the machine.
        return _any_of(spec.choices) if len(spec.choices) > 1 else "a choice"
    if spec.type == "BOOLEAN":
        return "on or off"
    if spec.type == "STRING":
        return "lines of text" if spec.options.get("multiline") else "text"
    low, high, step = (spec.options[name] for name in ("min", "max", "step"))
    limits = f"from {_value(low)}" + (f" to {_value(high)}" if high < UNBOUNDED else "")
    if spec.type == "INT":
        return f"whole number {limits}" + (f" in steps of {step}" if step > 1 else "")
    return f"number {limits}"


def _type(names: str) -> str:
    return _any_of(names.split(","))


def _any_of(names: Any) -> str:
    quoted = [_value(name) for name in names]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    return f"`{value}`" if isinstance(value, str) and value else str(value) or "empty"


def _plain(text: str) -> str:
    """`text` without what Markdown would take for its own."""
    return re.sub(r"([*<\\])", r"\\\1", text)
