"""Processor time of importing the pack as ComfyUI does at its start; the goal is below 0.1 s on an idle core.

Run: python tests/benchmarks/pack_import.py

The median of nine imports, each in a Python of its own. How many modules are loaded is held by a test.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 9

IMPORT = f"""
import importlib.util, sys, time
folder = {str(ROOT)!r}
start = time.process_time()
spec = importlib.util.spec_from_file_location("pack", folder + "/__init__.py", submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
print(time.process_time() - start)
"""


def seconds() -> float:
    """Of one import."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Prints the median; always 0, as a busy machine is no fault of the pack."""
    seconds()  # Writes the bytecode.
    print(f"import of the pack: {statistics.median(seconds() for _ in range(ROUNDS)):.3f} s of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
