"""What a V1 node class declares, in one form: shared by the workflow writer, the runner and the tiny twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

SEED_NAMES = ("seed", "noise_seed")
"""The frontend adds a control_after_generate widget to an INT of these names unless the option says False."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    name: str
    type: str
    """COMBO for a list of choices."""
    options: Mapping[str, Any]
    required: bool
    choices: tuple[Any, ...] | None = None

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGET_TYPES and not self.options.get("forceInput", False)

    @property
    def default(self) -> Any:
        """The widget's first value, as the frontend chooses it."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    name: str
    type: str


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs in the frontend's order (required, then optional) and outputs by slot."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]

    def input(self, name: str) -> InputSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output_index(self, name: str) -> int:
        """Raises KeyError when there is no such output."""
        for index, output in enumerate(self.outputs):
            if output.name == name:
                return index
        raise KeyError(f"no output {name!r}; there are {', '.join(o.name for o in self.outputs) or 'none'}")

    def widget_slots(self) -> list[tuple[str, Any]]:
        """What each position of a UI node's widgets_values holds: (input name, None), or ("", fixed extra value)."""
        slots: list[tuple[str, Any]] = []
        for spec in self.inputs:
            if not spec.is_widget:
                continue
            slots.append((spec.name, None))
            if spec.type == "INT" and spec.options.get("control_after_generate", spec.name in SEED_NAMES):
                slots.append(("", "fixed"))
            if spec.options.get("image_upload"):
                slots.append(("", "image"))
        return slots


def signature_of(node_class: type) -> Signature:
    """Reads INPUT_TYPES, RETURN_TYPES and RETURN_NAMES."""
    declared = node_class.INPUT_TYPES()
    inputs = [
        _input_spec(name, entry, required=section == "required")
        for section in ("required", "optional")
        for name, entry in declared.get(section, {}).items()
    ]
    types = tuple(getattr(node_class, "RETURN_TYPES", ()))
    names = tuple(getattr(node_class, "RETURN_NAMES", types))
    outputs = [OutputSpec(name=name, type=kind) for name, kind in zip(names, types, strict=True)]
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs))


def types_match(sent: str, wanted: str) -> bool:
    """Core's rule: comma-separated sets that overlap; `*` fits everything."""
    return "*" in (sent, wanted) or bool(set(sent.split(",")) & set(wanted.split(",")))


def is_link(value: Any) -> bool:
    """Whether an API input is `[node id, output slot]`."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def _input_spec(name: str, entry: tuple, *, required: bool) -> InputSpec:
    kind = entry[0]
    options = dict(entry[1]) if len(entry) > 1 else {}
    if isinstance(kind, (list, tuple)):
        return InputSpec(name=name, type="COMBO", options=options, required=required, choices=tuple(kind))
    choices = tuple(options["options"]) if kind == "COMBO" else None
    return InputSpec(name=name, type=kind, options=options, required=required, choices=choices)
