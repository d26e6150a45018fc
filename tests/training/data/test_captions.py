"""Captions by each strategy, with everything that can be wrong with their files."""

import json

import pytest
from comfyui_longcat.training.data.sets import scan_dataset
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from PIL import Image

CHINESE = "\u84dd\u8272_\u8fb9\u6846"
BLUE = "\u84dd\u8272\u7684\u5706"
BOM = "\ufeff"


@pytest.fixture
def folder(tmp_path):
    """Three pictures: a_red_bird.png, b.jpg, and one of a Chinese name."""
    for name in ("a_red_bird.png", "b.jpg", f"{CHINESE}.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    return tmp_path


def scan(folder, strategy, **settings):
    return scan_dataset(
        DatasetConfig(instance_data_dir=str(folder), caption_strategy=strategy, resolution="64", **settings)
    )


def captions(folder, strategy, **settings):
    return {record.name: record.caption for record in scan(folder, strategy, **settings).records}


def refused(folder, strategy):
    with pytest.raises(DataError) as caught:
        scan(folder, strategy)
    return str(caught.value)


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)


EXPECTED = {"a_red_bird": "a red bird", "b": "b, flying", CHINESE: BLUE}


def test_text_files(folder):
    write(folder / "a_red_bird.txt", BOM + " a red bird\n")
    write(folder / "b.TXT", "b, flying")
    write(folder / f"{CHINESE}.txt", BLUE)
    write(folder / "stray.txt", "")
    assert captions(folder, "textfile") == EXPECTED


def test_file_names_with_blanks_for_underscores(folder):
    assert captions(folder, "filename") == {"a_red_bird": "a red bird", "b": "b", CHINESE: CHINESE.replace("_", " ")}
    assert not scan(folder, "filename").warnings
    Image.new("RGB", (64, 64)).save(folder / "00_12.png")
    (warning,) = scan(folder, "filename").warnings
    assert warning.startswith("1 of 4 pictures") and "without a word" in warning and "00_12.png" in warning


def test_one_caption_for_all(folder):
    assert set(captions(folder, "instanceprompt", instance_prompt=" a sks bird ").values()) == {"a sks bird"}


@pytest.mark.parametrize("keys", [("caption", "caption", "caption"), ("prompt", "text", "caption")])
def test_json_beside_the_picture(folder, keys):
    for (name, caption), key in zip(EXPECTED.items(), keys, strict=True):
        write(folder / f"{name}.json", BOM + json.dumps({key: caption, "seed": 3}))
    write(folder / "aspect_ratio_bucket_metadata_mine.json", "[]")  # SimpleTuner leaves such files among the pictures
    assert captions(folder, "json") == EXPECTED


TABLES = {
    "texts": {"a_red_bird.png": "a red bird", "b": "b, flying", f"{CHINESE}.png": BLUE},
    "objects": {"a_red_bird": {"prompt": "a red bird"}, "b.jpg": {"text": "b, flying"}, CHINESE: {"caption": BLUE}},
    "list": [
        {"filename": "a_red_bird.png", "caption": "a red bird"},
        {"file_name": "b.jpg", "prompt": "b, flying"},
        {"filename": f"{CHINESE}.png", "text": BLUE},
    ],
}


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize(("name", "start", "ascii"), [("captions.json", BOM, False), ("metadata.json", "", True)])
def test_json_for_the_folder(folder, form, name, start, ascii):
    write(folder / name, start + json.dumps(TABLES[form], ensure_ascii=ascii))
    assert captions(folder, "json") == EXPECTED


def test_json_for_the_folder_and_beside_add_up(folder):
    write(folder / "captions.json", json.dumps({"b.jpg": "b, flying", CHINESE: BLUE}))
    write(folder / "a_red_bird.json", '{"caption": "a red bird"}')
    assert captions(folder, "json") == EXPECTED
    write(folder / "b.json", '{"caption": "another"}')
    assert "1 pictures have a .json of their own and an entry in captions.json: b.jpg" in refused(folder, "json")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("head", [("filename", "caption"), ("prompt", "file_name"), ("id", "Text", "FileName ")])
def test_csv(folder, mark, head):
    rows = [mark.join(head)]
    for name, caption in {"a_red_bird.png": "a red bird", "b.jpg": "b, flying", CHINESE: BLUE}.items():
        cells = {"filename": name, "file_name": name, "id": "1"}
        rows.append(mark.join(cells.get(key.strip().lower(), f'"{caption}"') for key in head))
    write(folder / "mine.csv", BOM + "\r\n".join(rows) + "\r\n\r\n")
    assert captions(folder, "csv") == EXPECTED


def test_a_csv_caption_may_hold_quotes_and_line_breaks(folder):
    write(folder / "a.csv", 'filename,caption\na_red_bird,"a ""red"" bird\nin a tree"\nb.jpg,b\n' + f"{CHINESE},c\n")
    assert captions(folder, "csv")["a_red_bird"] == 'a "red" bird\nin a tree'


def test_names_of_macos_and_linux_are_one(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "cafe\u0301.png")
    write(tmp_path / "captions.json", json.dumps({"caf\u00e9.png": "coffee"}))
    assert captions(tmp_path, "json") == {"caf\u00e9": "coffee"}


@pytest.mark.parametrize("strategy", ["textfile", "json", "csv"])
def test_missing_captions_are_listed_with_the_remedy(folder, strategy):
    message = refused(folder, strategy)
    assert "3 of 3 pictures have no caption" in message
    assert {"textfile": ".txt of the picture's name", "json": "captions.json", "csv": "one .csv"}[strategy] in message


@pytest.mark.parametrize(
    ("strategy", "name", "content", "words"),
    [
        ("json", "captions.json", '{"b.jpg": "b",}', "is no valid JSON"),
        ("json", "captions.json", '"b"', "is no table of captions"),
        ("json", "captions.json", "{}", "holds no captions"),
        ("json", "captions.json", '{"b.jpg": ""}', "the entry 'b.jpg' has no caption"),
        ("json", "captions.json", '[{"caption": "b"}]', "entry 1 has no file name"),
        (
            "json",
            "captions.json",
            '[{"filename": "b.jpg", "caption": 3}, 5]',
            "entry 1 has no caption, entry 2 has no file",
        ),
        (
            "json",
            "captions.json",
            '{"c.jpg": "b"}',
            "1 of 1 entries of .*captions.json name no picture.*: c.jpg .nearest: b.jpg",
        ),
        ("json", "captions.json", '{"b.jpg": "b", "b": "c"}', "1 pictures occur more than once.*: b"),
        ("json", "captions.json", '{"b.jpg": "b", "b.jpg": "c"}', "the key .b.jpg. occurs twice"),
        ("json", "captions.json", '{"b.jpg": {"caption": "b", "text": "c"}}', "caption and text with different texts"),
        ("json", "b.json", '{"caption": "b", "prompt": "c"}', "caption and prompt with different texts"),
        (
            "json",
            "captions.json",
            '[{"filename": "b.jpg", "file_name": "c.jpg", "caption": "b"}]',
            "entry 1 has filename and file_name with different texts",
        ),
        ("csv", "a.csv", "filename,caption,prompt\nb.jpg,b,b\na_red_bird.png,a,c\n", "line 3 has caption and prompt"),
        ("csv", "a.csv", "filename,caption,Caption\nb.jpg,b,c\n", "several columns called caption"),
        ("csv", "a.csv", "filename,caption\nb.jpg,b\nb.jpg,c\n", "1 pictures occur more than once"),
        ("json", "b.json", '{"title": "b"}', "1 of 1 caption files cannot be used:.*b.json holds no caption"),
        ("json", "b.json", "", "b.json is no valid JSON"),
        ("csv", "a.csv", "", "its first line must name a column filename or file_name"),
        ("csv", "a.csv", "b.jpg,b\n", "begins with 'b.jpg,b'; its first line must name"),
        ("csv", "a.csv", "filename,caption\n", "holds no captions"),
        ("csv", "a.csv", "filename,caption\nb.jpg,b, flying\n", "line 2 has 3 cells, the first line 2.*double quotes"),
        ("csv", "a.csv", 'filename,caption\nb.jpg,"b\n', "is no CSV table"),
        ("csv", "a.csv", "filename,caption\nb.jpg,\n,b\n", "line 2 has no caption, line 3 has no file name"),
        ("csv", "a.csv", "filename,caption\nsub/b.jpg,b\n", "1 of 1 entries of .*a.csv name no picture"),
    ],
)
def test_faulty_files_are_named(folder, strategy, name, content, words):
    import re

    write(folder / name, content)
    assert re.search(words, refused(folder, strategy), re.DOTALL)


@pytest.mark.parametrize(("strategy", "name"), [("json", "captions.json"), ("json", "b.json"), ("csv", "a.csv")])
@pytest.mark.parametrize(("encoding", "words"), [("gb18030", "is not UTF-8 text"), ("utf-16", "UTF-8")])
def test_other_encodings_are_refused_by_name(folder, strategy, name, encoding, words):
    text = (
        f"filename,caption\nb.jpg,{BLUE}\n" if strategy == "csv" else json.dumps({"caption": BLUE}, ensure_ascii=False)
    )
    write(folder / name, text, encoding)
    message = refused(folder, strategy)
    assert str(folder / name) in message and words in message


def test_several_tables_are_refused(folder):
    for name in ("a.csv", "b.csv"):
        write(folder / name, "filename,caption\nb.jpg,b\n")
    assert "holds 2 tables of captions: a.csv, b.csv. Keep one." in refused(folder, "csv")


def test_all_faults_come_at_once(folder):
    write(folder / "a.csv", "filename,caption\nb.jpg,b\ngone.png,g\nb,again\n")
    (folder / "broken.png").write_bytes(b"")
    Image.new("RGB", (64, 64)).save(folder / "b.webp")
    message = refused(folder, "csv")
    for part in (
        "for 5 reasons",
        "gone.png (nearest",
        "occur more than once in",
        "b.jpg = b.webp",
        "3 of 4 pictures have no caption",
        "broken.png cannot be read",
    ):
        assert part in message


def all_captions(folder, **settings):
    return {record.name: record.captions for record in scan(folder, "textfile", **settings).records}


def test_each_line_of_a_text_file_is_a_caption_of_its_own(folder):
    write(folder / "a_red_bird.txt", "a red bird\r\n\r\n  a bird that is red \n")
    write(folder / "b.txt", "\n b, flying\n\n")
    write(folder / f"{CHINESE}.txt", f"{BLUE}\n{BLUE}")
    assert all_captions(folder) == {
        "a_red_bird": ("a red bird", "a bird that is red"),
        "b": ("b, flying",),
        CHINESE: (BLUE, BLUE),
    }
    (warning,) = scan(folder, "textfile").warnings
    assert warning.startswith("2 of 3 caption files have several lines: a_red_bird.txt, ")
    assert "disable_multiline_split" in warning
    whole = all_captions(folder, disable_multiline_split=True)
    assert whole["a_red_bird"] == ("a red bird\n\n  a bird that is red",)
    assert not scan(folder, "textfile", disable_multiline_split=True).warnings
