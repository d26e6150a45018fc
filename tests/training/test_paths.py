"""Containment: a workflow reaches the allowed folders and nothing else, by whatever spelling."""

import os
from pathlib import Path

import pytest
from comfyui_longcat.training.errors import ConfigError, PathError
from comfyui_longcat.training.paths import AllowedRoots, check_name


@pytest.fixture
def places(tmp_path):
    for folder in ("input/pictures", "extra/more", "secret/keys", "input-evil"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def allowed(places):
    return AllowedRoots(bases=(places / "input", places / "datasets"), roots=(places / "input", places / "extra"))


def test_folders_inside_are_found(allowed, places):
    inside = (places / "input" / "pictures").resolve()
    for text in ("pictures", "./pictures/", " pictures ", "../input/pictures", str(places / "input" / "pictures")):
        assert allowed.resolve_folder(text, "folder") == inside
    assert allowed.resolve_folder(str(places / "extra" / "more"), "folder") == (places / "extra" / "more").resolve()


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_around_a_path_are_not_part_of_it(allowed, places, quote):
    found = allowed.resolve_folder(f" {quote}{places / 'input' / 'pictures'}{quote} ", "folder")
    assert found == (places / "input" / "pictures").resolve()


@pytest.mark.skipif(os.sep != "/", reason="there it is no fault")
def test_backslashes_are_spoken_of(allowed, places):
    with pytest.raises(PathError, match="not a backslash"):
        allowed.resolve_folder("pictures\\", "folder")


@pytest.mark.parametrize(
    "text",
    [
        "//server/share",
        "\\\\server\\share",
        "'//server/share'",
        "\\/server/share",
        "/\\server\\share",
        "//?/UNC/server/a",
    ],
)
def test_paths_of_other_machines_are_refused_unresolved(allowed, text):
    for resolve in (allowed.resolve_folder, allowed.resolve_existing, allowed.resolve_new):
        with pytest.raises(PathError, match="another machine"):
            resolve(text, "folder")


@pytest.mark.parametrize(
    "text", ["{root}/secret", "{root}/secret/keys", "../secret", "pictures/../../secret", "/", ".."]
)
def test_folders_outside_are_refused(allowed, places, text):
    text = text.format(root=places)
    for resolve in (allowed.resolve_folder, allowed.resolve_new):
        with pytest.raises(PathError, match="LongCatDataset.folder is .* outside the allowed folders"):
            resolve(text, "LongCatDataset.folder")


def test_a_root_s_name_as_prefix_is_not_inside(allowed, places):
    with pytest.raises(PathError, match="outside the allowed folders"):
        allowed.resolve_folder(str(places / "input-evil"), "folder")


def test_links_are_followed_before_the_check(allowed, places):
    (places / "input" / "way-out").symlink_to(places / "secret")
    (places / "secret" / "way-in").symlink_to(places / "input" / "pictures")
    for text in ("way-out", "way-out/keys", "pictures/../way-out/keys"):
        with pytest.raises(PathError, match="outside the allowed folders"):
            allowed.resolve_folder(text, "folder")
        with pytest.raises(PathError, match="outside the allowed folders"):
            allowed.resolve_new(text + "/new", "folder")
    inside = allowed.resolve_folder(str(places / "secret" / "way-in"), "folder")
    assert inside == (places / "input" / "pictures").resolve()


def test_a_link_that_is_a_root_itself_is_allowed(places):
    (places / "linked").symlink_to(places / "extra")
    allowed = AllowedRoots(bases=(places / "input",), roots=(places / "linked",))
    assert allowed.resolve_folder(str(places / "linked" / "more"), "folder") == (places / "extra" / "more").resolve()


def test_bases_are_searched_in_order(allowed, places):
    (places / "datasets" / "late").mkdir(parents=True)
    allowed = AllowedRoots(bases=allowed.bases, roots=(*allowed.roots, places / "datasets"))
    assert allowed.resolve_folder("late", "folder") == (places / "datasets" / "late").resolve()
    (places / "input" / "late").mkdir()
    assert allowed.resolve_folder("late", "folder") == (places / "input" / "late").resolve()


@pytest.mark.parametrize(("text", "complaint"), [("", "is empty"), ("  ", "is empty"), ("a\0b", "NUL character")])
def test_texts_that_are_no_path(allowed, text, complaint):
    for resolve in (allowed.resolve_folder, allowed.resolve_new):
        with pytest.raises(PathError, match=complaint):
            resolve(text, "folder")


def test_missing_folders_and_files_name_where_was_looked(allowed, places):
    (places / "input" / "file").write_text("", encoding="utf-8")
    for text in ("gone", "file"):
        with pytest.raises(PathError) as caught:
            allowed.resolve_folder(text, "folder")
        assert repr(text) in str(caught.value) and str(places / "input") in str(caught.value)


def test_paths_that_no_system_call_takes_are_refused_as_paths(allowed, places):
    (places / "input" / "circle").symlink_to(places / "input" / "circle")
    for text in ("x" * 300, "x/" * 3000, "circle", "circle/a", "\ud800"):
        with pytest.raises(PathError, match="LongCatDataset.folder is"):
            allowed.resolve_folder(text, "LongCatDataset.folder")


@pytest.mark.parametrize("text", ["x" * 256, "\u4e2d" * 86, "a/" * 3000 + "a", "b/" + "x" * 300 + "/c", "a/" * 450])
def test_new_paths_that_could_not_be_made_are_refused(allowed, text):
    with pytest.raises(PathError, match="cache is .*no usable path.*bytes") as caught:
        allowed.resolve_new(text, "cache")
    assert len(str(caught.value)) < 500


def test_links_in_a_folder_that_lead_out_are_named(allowed, places):
    pictures, secret = places / "input" / "pictures", places / "secret" / "secret.txt"
    secret.write_text("canary")
    (pictures / "sub").mkdir()
    (pictures / "here.txt").symlink_to(places / "extra" / "more")
    assert allowed.resolve_folder("pictures", "folder") == pictures.resolve()
    (pictures / "a.txt").symlink_to(secret)
    with pytest.raises(PathError, match="folder is .*, where a.txt are links that lead out.*LONGCAT_DATA_ROOTS"):
        allowed.resolve_folder("pictures", "folder")
    (pictures / "a.txt").unlink()
    (places / "extra" / "more" / "b.png").symlink_to(secret)
    with pytest.raises(PathError, match=r"where here.txt/b.png are links"):
        allowed.resolve_existing("pictures", "folder")
    (places / "extra" / "more" / "b.png").unlink()
    (pictures / "sub" / "keys").symlink_to(places / "secret")
    with pytest.raises(PathError, match=r"where sub/keys are links"):
        allowed.resolve_folder("pictures", "folder")
    assert AllowedRoots(bases=allowed.bases).resolve_folder("pictures", "folder") == pictures.resolve()


def test_links_that_lead_in_circles_or_nowhere_end(allowed, places):
    (places / "input" / "pictures" / "again").symlink_to(places / "input")
    (places / "input" / "pictures" / "gone").symlink_to(places / "input" / "nothing")
    assert allowed.resolve_folder("pictures", "folder").name == "pictures"


@pytest.mark.parametrize("name", ["\ud800", "\u4e2d" * 90, "a\x00", "x" * 101, "", ".", "a ", "NUL", "a/b"])
def test_names_that_are_no_file_names_everywhere_are_refused(name):
    with pytest.raises(ConfigError, match="run_name is .*can be a file name on every system") as caught:
        check_name("run_name", name)
    str(caught.value).encode("utf-8")


def test_new_paths_lie_in_the_first_base(allowed, places):
    assert allowed.resolve_new("vae/targets", "cache") == (places / "input" / "vae" / "targets").resolve()


def test_home_is_not_expanded_where_paths_are_bounded(allowed, places, monkeypatch):
    monkeypatch.setenv("HOME", str(places / "secret"))
    assert allowed.resolve_new("~/keys", "folder") == (places / "input" / "~" / "keys").resolve()


def test_the_terminal_has_no_bounds(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places / "secret"))
    monkeypatch.setenv("USERPROFILE", str(places / "secret"))
    free = AllowedRoots(bases=(places / "input",))
    assert free.contains(Path("/"))
    assert free.resolve_folder("../secret", "folder") == (places / "secret").resolve()
    assert free.resolve_folder("~/keys", "folder") == (places / "secret" / "keys").resolve()
