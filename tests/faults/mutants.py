"""Changes one operator, number or condition of the code at a time, and shows which changes no test notices.

Run: python tests/faults/mutants.py [--count 300] [--seed 0] [--only training/loop]

The changes are cosmic-ray's. A seeded sample of the places where the code can be changed is drawn, at each place one of
the changes. Each is tried against the test files that import the changed file, the quick tests first. The working tree
is read, with what is not yet committed in it, and never written to. What the figures say: docs/testing.md.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from copied_tree import PACKAGE, ROOT, CopiedTree
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOMS = ("training/loop", "training/caches", "training/data", "training/lora", "training/models/flow.py")
"""Where the code is changed: folders and files."""

ANYWHERE = "not comfy and not gpu and not install"
"""Marks of tests that run on any machine."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    operator: str
    """cosmic-ray's name of the change."""
    text: str
    """The whole file with the change."""

    def changed_lines(self, right: str) -> str:
        """What was there, and what is there now."""
        difference = difflib.ndiff(right.splitlines(), self.text.splitlines())
        return " ".join(f"{line[0]} {line[2:].strip()}" for line in difference if line[0] in "-+")


def main(arguments: Sequence[str]) -> int:
    asked = parsed(arguments)
    drawn = sample(asked.count, asked.seed, asked.only)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = CopiedTree(Path(folder))
        if not asked.no_baseline:
            tests = sorted({test for mutant in drawn for test in tests_of(mutant.file)})
            outcome = tree.run([*tests, "-m", ANYWHERE])
            if outcome.failed or outcome.broken:
                print(f"Red without any change: {', '.join((*outcome.failed, *outcome.broken))}. Fix these first.")
                return 1
        for mutant in drawn:
            started = time.monotonic()
            became, by = fate(tree, mutant, asked.seconds)
            found[became] += 1
            print(
                f"{became:9} {time.monotonic() - started:4.0f} s  {mutant.file}:{mutant.line}  {mutant.operator}  {by}",
                f"\n          {mutant.changed_lines(tree.read(mutant.file))}",
                flush=True,
            )
    noticed = sum(found.values()) - found["survived"]
    print(f"{noticed} of {sum(found.values())} changes are noticed: {dict(found)}.")
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws others")
    parser.add_argument("--only", action="append", help="a folder or file; may be given several times")
    parser.add_argument("--seconds", type=float, default=900, help="after which a change has made the tests hang")
    parser.add_argument("--no-baseline", action="store_true", help="the tests are known to be green")
    asked = parser.parse_args(arguments)
    asked.only = asked.only or ROOMS
    return asked


def sample(count: int, seed: int, only: Sequence[str]) -> list[Mutant]:
    """Of all places in the files one after another in random order, each with one of its changes."""
    chance = random.Random(seed)
    files = [path for name in only for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    places = [(path, *place) for path in sorted(files) for place in places_of(path.read_text(encoding="utf-8"))]
    chance.shuffle(places)
    drawn: list[Mutant] = []
    for path, line, changes in places:
        if len(drawn) == count:
            break
        right = path.read_text(encoding="utf-8")
        operator, occurrence = chance.choice(changes)
        text = mutate_code(right, get_operator(operator)(), occurrence)
        if text is not None and behaviour(text) not in (None, behaviour(right)):
            file = path.relative_to(ROOT).as_posix()
            drawn.append(Mutant(file=file, line=line, operator=operator.partition("/")[2], text=text))
    return drawn


def places_of(text: str) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """(line, its changes as (operator, number of the occurrence in the file)) of each place that can be changed."""
    found: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[str, int]]] = {}
    tree = get_ast(text)
    for name in operator_names():
        if get_operator(name).arguments():
            continue
        operator, occurrence = get_operator(name)(), 0
        for node in ast_nodes(tree):
            for start, end in operator.mutation_positions(node):
                found.setdefault((start, end), []).append((name, occurrence))
                occurrence += 1
    for (start, _), changes in sorted(found.items()):
        yield start[0], changes


def behaviour(text: str) -> str | None:
    """The code without what a running program does not notice; None if it is no Python.

    That is: annotations, what only type checkers read, and what a dataclass forbids (frozen, kw_only).
    """
    try:
        return ast.dump(_Unnoticed().visit(ast.parse(text)))
    except SyntaxError:
        return None


class _Unnoticed(ast.NodeTransformer):
    """Takes it away."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # noqa: N802 (a name of ast's)
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:  # noqa: N802
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # noqa: N802
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                decorator.keywords = []
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:  # noqa: N802
        types = any(isinstance(each, ast.Name) and each.id == "TYPE_CHECKING" for each in ast.walk(node.test))
        return None if types else self.generic_visit(node)


def fate(tree: CopiedTree, mutant: Mutant, seconds: float) -> tuple[str, str]:
    """("noticed", "broken", "hangs" or "survived"; which test noticed it)

    "broken": a file could not be imported, or a fixture failed; "hangs": the tests did not end in time.
    """
    with tree.changed(mutant.file, mutant.text):
        for speed in ("not slow", "slow"):
            outcome = tree.run([*tests_of(mutant.file), "-x", "-m", f"({ANYWHERE}) and {speed}"], seconds)
            if not outcome.ended:
                return "hangs", ""
            if outcome.failed:
                return "noticed", outcome.failed[0]
            # That no test of a file is slow is no fault.
            if any(".py" in each for each in outcome.broken):
                return "broken", outcome.broken[0]
    return "survived", ""


@functools.cache
def tests_of(file: str) -> tuple[str, ...]:
    """The test files that import `file`; those of its own name first, then those of its room.

    If none does, those that import what imports it.
    """
    module = _module_of(file)
    tests = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
    found = [test for test in tests if module in _imports_of(test)]
    if not found:
        users = [path.relative_to(ROOT).as_posix() for path in (ROOT / "training").rglob("*.py")]
        modules = {_module_of(user) for user in users if module in _imports_of(user)}
        found = [test for test in tests if modules & _imports_of(test)]
    room, stem = str(Path(file).parent), Path(file).stem

    def distance(test: str) -> tuple[bool, bool, str]:
        return stem not in Path(test).stem, str(Path(test).parent) != f"tests/{room}", test

    return tuple(sorted(found, key=distance))


@functools.cache
def _imports_of(file: str) -> frozenset[str]:
    """Full names of the modules of the package that a file imports, anywhere in it."""
    here = _module_of(file).split(".")
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(here[: -node.level]) + "." if node.level else ""
            start = above + (node.module or "")
            names |= {start, *(f"{start.removesuffix('.')}.{each.name}" for each in node.names)}
    return frozenset(names)


def _module_of(file: str) -> str:
    return ".".join((PACKAGE, *Path(file).with_suffix("").parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
