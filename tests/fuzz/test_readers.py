"""Whatever is in the files that users bring, only errors of ours come out: short, and naming the file.

FUZZ_INPUTS=5000 FUZZ_SEED=1 pytest tests/fuzz: more inputs, other ones. What a finding's number stands for is in the
test's temporary folder, as input<number>.
"""

import math
import multiprocessing
import os

import pytest

INPUTS = int(os.environ.get("FUZZ_INPUTS", "2000"))
"""Of all readers together."""

SEED = os.environ.get("FUZZ_SEED", "0")

NAMES = (
    *("configurations", "captions", "pictures", "videos", "pairs"),
    *("LoRA files", "single files", "model folders", "prompts", "workflows"),
)

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes that are forked"
)


@pytest.mark.parametrize("name", NAMES)
def test_only_our_errors_come_out(name, tmp_path):
    from .child import fuzz, report
    from .readers import READERS

    assert set(NAMES) == set(READERS)
    count = math.ceil(INPUTS * READERS[name].share / sum(reader.share for reader in READERS.values()))
    findings = fuzz(name, count, SEED, tmp_path)
    print(f"{name}: {len(findings)} of {count} inputs")
    assert not findings, f"FUZZ_SEED={SEED}, inputs in {tmp_path}\n{report(findings)}"
