"""Plants faults into a copy of the tree, one at a time, and shows which tests notice each.

Run: python tests/faults/plant.py [name ...]

Without names, all faults of faults.py. The exit code is 0 only if every test that is named for a fault turned red with
it, and was green without it. The working tree is read, with what is not yet committed in it, and never written to.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from copied_tree import CopiedTree
from faults import FAULTS, Fault


def main(names: Sequence[str]) -> int:
    faults = chosen(names)
    with tempfile.TemporaryDirectory() as folder:
        tree = CopiedTree(Path(folder))
        red = red_tests(tree, {test for fault in faults for test in fault.tests})
        if red:
            print(f"Red without any fault: {', '.join(sorted(red))}. Fix these first.")
            return 1
        widths = [max(len(text) for text in column) for column in zip(*((f.name, f.file) for f in faults), strict=True)]
        noticed = [show(fault, red_with(tree, fault), widths) for fault in faults]
    print(f"{sum(noticed)} of {len(faults)} faults are noticed.")
    return 0 if all(noticed) else 1


def chosen(names: Sequence[str]) -> list[Fault]:
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        sys.exit(f"No fault is named {', '.join(sorted(unknown))}. There are: {', '.join(f.name for f in FAULTS)}.")
    return [fault for fault in FAULTS if not names or fault.name in names]


def red_tests(tree: CopiedTree, tests: Iterable[str], until: Collection[str] = ()) -> set[str]:
    """Names of the tests that fail in the copy, without their parameters; `until`: see `CopiedTree.run`.

    Tests that cannot be run do not count: that would be another fault than the one that was planted.
    """
    outcome = tree.run(sorted(tests), until=until)
    if outcome.broken or not outcome.ended:
        sys.exit(f"The tests could not be run:\n{outcome.text}")
    return {node.partition("::")[2].partition("[")[0] for node in outcome.failed}


def red_with(tree: CopiedTree, fault: Fault) -> set[str]:
    """Names of the tests that fail while the fault is in the copy."""
    try:
        wrong = fault.planted_in(tree.read(fault.file))
    except ValueError as error:
        sys.exit(str(error))
    with tree.changed(fault.file, wrong):
        return red_tests(tree, fault.tests, until=fault.tests)


def show(fault: Fault, red: set[str], widths: Sequence[int]) -> bool:
    """Prints the fault's lines of the table; whether every one of its tests is red."""
    start = f"{fault.name:{widths[0]}}  {fault.file:{widths[1]}}  "
    names = [test.partition("::")[2] for test in fault.tests]
    for name in names:
        print(start + (name if name in red else f"NOT NOTICED by {name}"), flush=True)
        start = " " * len(start)
    return red >= set(names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
