"""The list of planted faults (tests/faults) still fits the tree; `make faults` plants them."""

import ast

import pytest
from comfyui_longcat.tests.faults.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_still_applies_and_is_python(fault, repository):
    right = (repository / fault.file).read_text(encoding="utf-8")
    wrong = fault.planted_in(right)
    assert ast.dump(ast.parse(wrong)) != ast.dump(ast.parse(right))


@pytest.mark.parametrize("test", sorted({test for fault in FAULTS for test in fault.tests}))
def test_the_tests_of_a_fault_exist(test, repository):
    file, _, name = test.partition("::")
    tree = ast.parse((repository / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_name_and_a_test_of_its_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.tests and fault.why for fault in FAULTS)


def test_a_fault_that_no_longer_applies_says_so():
    fault = FAULTS[0]
    for text in ("", fault.find * 2):
        with pytest.raises(ValueError, match=f"no longer applies: {fault.name} .* {text.count(fault.find)} times"):
            fault.planted_in(text)
