"""Caption files: UTF-8 with or without mark, everything else refused by name."""

import pytest
from comfyui_longcat.training.data.caption_files import read_whole
from comfyui_longcat.training.errors import DataError

CHINESE = "\u52a0\u4e00\u4e2a\u84dd\u8272\u8fb9\u6846"


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"  add a border \r\n", "add a border"),
        (b"\xef\xbb\xbfadd a border", "add a border"),
        (CHINESE.encode("utf-8"), CHINESE),
        (b"first line\r\nsecond line\n", "first line\nsecond line"),
    ],
)
def test_reads_text(tmp_path, data, caption):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert read_whole(path) == (caption,)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        ("caf\u00e9".encode("latin-1"), "UTF-8"),
        (CHINESE.encode("gbk"), "UTF-8"),
        ("plain".encode("utf-16"), "UTF-8"),
        ("plain".encode("utf-16-le"), "NUL"),
    ],
)
def test_refuses_by_name(tmp_path, data, complaint):
    path = tmp_path / "faulty.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"faulty\.txt.*{complaint}"):
        read_whole(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt"):
        read_whole(tmp_path / "gone.txt")
