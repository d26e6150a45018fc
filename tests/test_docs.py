"""What the pages for developers say about the tree, compared with the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_longcat.tests.test_architecture import ROOMS
from comfyui_longcat.training.lora.file import read_lora
from comfyui_longcat.training.tiny.examples import draw_example_pairs

PAGES = ("CONTRIBUTING.md", "docs/architecture.md")

PATH = re.compile(r"[\w.-]+(/[\w.-]+)+|[\w-]+\.(py|md|txt|toml)")

NOT_HERE = ("ComfyUI/", "after/", "before/", "conftest.py")
"""Beginnings of paths that are no file of the root."""


def text_of(repository: Path, page: str) -> str:
    return (repository / page).read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_the_page_has_the_rooms_in_their_order(repository):
    section = re.search(r"## The rooms\n(.*?)\n## ", text_of(repository, "docs/architecture.md"), re.DOTALL)[1]
    assert tuple(re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE)) == ROOMS


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_a_page_names_exist(repository, page):
    spans = re.findall(r"`([^`\n]+)`", without_blocks(text_of(repository, page)))
    named = [span for span in spans if PATH.fullmatch(span) and not span.startswith(NOT_HERE)]
    assert named
    assert [path for path in named if not (repository / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(repository, page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(repository, page)) if "://" not in link]
    assert links
    assert [link for link in links if not (repository / page).parent.joinpath(link).exists()] == []


def test_names_stand_in_the_files_that_the_page_puts_them_into(repository):
    """Mentions of the form `name` in `path`."""
    text = without_blocks(text_of(repository, "docs/architecture.md"))
    mentions = re.findall(r"`(\w+)`,? (?:in|of) `([\w/]+(?:\.py)?)`", text)
    assert len(mentions) > 10

    def source(path: str) -> str:
        found = repository / path
        return "\n".join(file.read_text(encoding="utf-8") for file in ([found] if found.is_file() else found.glob("*")))

    assert [name for name, path in mentions if not re.search(rf"\b{name}\b", source(path))] == []


def test_every_make_target_is_explained(repository):
    targets = re.search(r"^\.PHONY: (.+)$", text_of(repository, "Makefile"), re.MULTILINE)[1].split()
    explained = re.findall(r"^\| `make ([\w-]+)` \|", text_of(repository, "CONTRIBUTING.md"), re.MULTILINE)
    assert sorted(explained) == sorted(targets)


def test_the_library_in_20_lines_trains_a_lora(repository, tmp_path):
    page = text_of(repository, "docs/architecture.md")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(list(filter(None, code.splitlines()))) <= 20
    draw_example_pairs(tmp_path / "after", tmp_path / "before", count=3)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lora = read_lora(tmp_path / done.stdout.splitlines()[-1])
    assert lora and all(weights.b.any() for weights in lora.values())
