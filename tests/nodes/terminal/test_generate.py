"""The files in the repository are what `make workflows` writes."""

import pytest
from comfyui_longcat.nodes.terminal.generate import generated_files


@pytest.fixture(scope="module")
def generated():
    return generated_files()


def test_generated_files_are_up_to_date(generated, repository):
    for path, text in generated.items():
        written = (repository / path).read_bytes().replace(b"\r\n", b"\n")
        assert written == text.encode("utf-8"), f"{path} is out of date: run `make workflows`"


def test_every_workflow_is_generated(generated, repository):
    found = {path.relative_to(repository) for path in (repository / "workflows").rglob("*.json")}
    assert found == {path for path in generated if path.parts[0] == "workflows"}
