"""Plants faults into a copy of the tree, one at a time, and shows which tests notice each.

Run: python tests/faults/plant.py [name ...]

Without names, all faults of faults.py. The exit code is 0 only if every test that is named for a fault turned red with
it, and was green without it. The working tree is read, with what is not yet committed in it, and never written to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "comfyui_longcat"


def main(names: Sequence[str]) -> int:
    faults = chosen(names)
    if hasattr(os, "nice"):
        os.nice(10)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / PACKAGE)
        check_import(tree)
        red = red_tests(tree, {test for fault in faults for test in fault.tests})
        if red:
            print(f"Red without any fault: {', '.join(sorted(red))}. Mend these first.")
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


def copy_tree(tree: Path) -> Path:
    """Copies all files that git tracks or would track, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the copy, which comes before the installed package."""
    path = os.pathsep.join(filter(None, [str(tree.parent), os.environ.get("PYTHONPATH")]))
    # Without bytecode: a file that is changed twice in a second may keep its date and size.
    settings = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env=os.environ | settings, capture_output=True, text=True)


def check_import(tree: Path) -> None:
    """Stops if the tests of the copy would test something else."""
    run = python(tree, "-c", f"import {PACKAGE}.training as training; print(training.__file__)")
    if not Path(run.stdout.strip()).is_relative_to(tree):
        sys.exit(f"Not the copy in {tree} would be tested, but {run.stdout.strip() or run.stderr}")


def red_tests(tree: Path, tests: Iterable[str]) -> set[str]:
    """Names of the tests that fail in the copy, without their parameters.

    Tests that cannot be run do not count: that would be another fault than the one that was planted.
    """
    run = python(tree, "-m", "pytest", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", *sorted(tests))
    # 0: all green, 1: some red.
    if run.returncode not in (0, 1) or re.search(r"\d+ errors? in ", run.stdout):
        sys.exit(f"The tests could not be run:\n{run.stdout}{run.stderr}")
    return set(re.findall(r"^FAILED \S+?::(\w+)", run.stdout, re.MULTILINE))


def red_with(tree: Path, fault: Fault) -> set[str]:
    """Names of the tests that fail while the fault is in the copy."""
    file = tree / fault.file
    right = file.read_text(encoding="utf-8")
    try:
        file.write_text(fault.planted_in(right), encoding="utf-8")
        return red_tests(tree, fault.tests)
    except ValueError as error:
        sys.exit(str(error))
    finally:
        file.write_text(right, encoding="utf-8")


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
