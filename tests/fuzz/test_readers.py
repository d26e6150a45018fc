"""Whatever is in the files that users bring, only errors of ours come out: short, and naming the file.

FUZZ_INPUTS=5000 FUZZ_SEED=1 pytest tests/fuzz: more inputs, other ones. What a finding's number stands for is in the
test's temporary folder, as input<number>.
"""

import math
import multiprocessing
import os

import pytest
from comfyui_longcat.tests.fuzz.child import fuzz, report

INPUTS = int(os.environ.get("FUZZ_INPUTS", "2000"))
"""Of all readers together."""

SEED = os.environ.get("FUZZ_SEED", "0")

SHARES = {
    "configurations": 250,
    "captions": 200,
    "pictures": 150,
    "videos": 120,
    "pairs": 60,
    "LoRA files": 120,
    "prompts": 50,
    "workflows": 30,
    # Whole models are loaded, of some megabytes each.
    "model folders": 12,
    "single files": 8,
}
"""Inputs of each reader among all."""

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes that are forked"
)


@pytest.mark.parametrize("name", SHARES)
def test_only_our_errors_come_out(name, tmp_path):
    count = math.ceil(INPUTS * SHARES[name] / sum(SHARES.values()))
    findings = fuzz(name, count, SEED, tmp_path)
    print(f"{name}: {len(findings)} findings in {count} inputs")
    assert not findings, f"FUZZ_SEED={SEED}, inputs in {tmp_path}\n{report(findings)}"
