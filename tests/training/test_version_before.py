"""Caches and unfinished runs of an earlier version stay good: same keys, same fingerprints, same LoRA.

The files are in tests/assets/version_before; its README tells how they were made.
"""

import json
import shutil
from importlib import metadata

import pytest
from comfyui_longcat.tests.assets.version_before import make
from safetensors.torch import load_file, safe_open

TOLERANCE = 1e-5
"""Relative. Other processors and versions of torch sum in another order; where both are equal, so is every bit."""

SAME = ("run", "fingerprint", "samples")


@pytest.fixture(params=make.COMMANDS)
def name(request) -> str:
    return request.param


@pytest.fixture
def expected(name):
    values = json.loads((make.HERE / name / "expected.json").read_text(encoding="utf-8"))
    made_with, installed = values["made_with"]["transformers"], metadata.version("transformers")
    if made_with != installed:
        pytest.skip(f"keys of texts hold the version of transformers: {made_with}, and here {installed}")
    return values


@pytest.fixture
def same_bits(expected) -> bool:
    return make.machine().items() <= expected["made_with"].items()


def test_an_unfinished_run_is_gone_on_with(name, expected, same_bits, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(make.HERE / name, home, ignore=shutil.ignore_patterns("expected*"))
    make.replace_in_texts(home / "output", make.HOME, str(home.resolve()))
    before = make.results_of(home)
    assert (before["losses"], before["caches"]) == (expected["losses"][:2], expected["caches"])
    files = _states(home)

    lines = make.finish(home, name)

    assert _states(home) == files, "something was encoded again"
    assert f"run {expected['run']} resumes at step 3 of 5" in lines
    _assert_same_run(name, home, expected, same_bits)


def test_the_same_run_from_nothing(name, expected, same_bits, tmp_path):
    home = tmp_path / "home"
    make.copy_start(name, home)

    lines = make.finish(home, name)

    assert f"run {expected['run']} starts at step 1 of 5" in lines
    caches, before = make.caches_of(home), make.caches_of(make.HERE / name)
    assert caches.keys() == before.keys() == expected["caches"].keys()
    for place, path in caches.items():
        _assert_same_tensors(path, before[place], same_bits)
    _assert_same_run(name, home, expected, same_bits)


def _states(home):
    """Place of each cache file -> what changes when it is written anew."""
    stats = {place: path.stat() for place, path in make.caches_of(home).items()}
    return {place: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for place, stat in stats.items()}


def _assert_same_run(name, home, expected, same_bits):
    found = make.results_of(home)
    assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}
    assert found["losses"] == (expected["losses"] if same_bits else pytest.approx(expected["losses"], rel=TOLERANCE))
    lora, wanted = make.lora_of(home), make.HERE / name / "expected.safetensors"
    assert lora.stem == found["run"]
    assert _fingerprints(lora) == _fingerprints(wanted)
    _assert_same_tensors(lora, wanted, same_bits)


def _fingerprints(lora):
    with safe_open(lora, "pt") as file:
        facts = json.loads(file.metadata()["longcat"])
    return {key: facts[key] for key in ("run_fingerprint", "dataset_fingerprint")}


def _assert_same_tensors(path, wanted_path, same_bits):
    if same_bits:
        assert make.digest_of(path) == make.digest_of(wanted_path)
        return
    found, wanted = load_file(path), load_file(wanted_path)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert (found[key] - tensor).norm() <= TOLERANCE * tensor.norm(), key
