"""Labelled grids of pictures: the contact sheet of a dataset, samples before and after training."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..errors import DataError
from .clips import iterate_pictures
from .media import crop_to, read_image
from .records import ClipRecord, Record, TrainingSet

CELL = 192
"""Px; side of the square that each picture is fitted into."""

MARGIN = 12
"""Px; between the cells and around them."""

FONT_SIZE = 16
"""Px."""

LINE_HEIGHT = 22
"""Px."""

TITLE_HEIGHT = LINE_HEIGHT + MARGIN
CAPTION_WIDTH = 300
"""Px; of the column of captions at the right."""

PAPER, INK = (255, 255, 255), (40, 44, 52)

LAST_WESTERN = "\u024f"
"""Last character of Latin Extended-B; Pillow's own font holds hardly any after it."""

WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "simsun.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "Arial Unicode.ttf",
    "NotoSerifCJK-Regular.ttc",
    "NotoSerifCJK-Bold.ttc",
)
"""Fonts with Chinese characters that Linux, Windows and macOS bring along; the first that Pillow finds is taken."""

# A run of Latin letters stays together; a line may break before any Chinese character.
WORD_OR_CHARACTER = re.compile(r"\s+|[^\s\u2e80-\uffff]+|[\u2e80-\uffff]")


def contact_sheet(dataset: TrainingSet, limit: int = 12) -> tuple[Image.Image, dict[Path, str]]:
    """The first `limit` records as rows reference | target | instruction, cropped as they will be trained.

    Without references there is no column for them; a single row without one begins with an empty place. Clips have rows
    start | middle | last frame | caption, where a start frame of its own stands for the clip's first one.

    Returns:
        the sheet, and by target why a record that should be on it cannot be decoded; the next one takes its place.
    """
    what, titles = _columns_of(dataset)
    rows, captions = [], []
    unreadable: dict[Path, str] = {}
    for record in dataset.records:
        if len(rows) == limit:
            break
        if record.target in unreadable:
            continue
        try:
            rows.append(_pictures_of(record, len(titles) - 1))
        except DataError as error:
            unreadable[record.target] = str(error)
            continue
        captions.append(f"{record.name} ({_size_of(record)})\n{record.caption}")
    total = sum(record.target not in unreadable for record in dataset.records)
    count = f"{total} {what}" if len(rows) == total else f"the first {len(rows)} of {total} {what}"
    return image_grid(rows, (*titles[:-1], f"{titles[-1]} ({count})"), captions), unreadable


def _columns_of(dataset: TrainingSet) -> tuple[str, tuple[str, ...]]:
    """(what the records are called, titles of the columns)"""
    if any(isinstance(record, ClipRecord) for record in dataset.records):
        return "clips", ("start", "middle", "last frame", "caption")
    if any(record.references for record in dataset.records):
        return "pairs", ("reference", "target", "instruction")
    return "pictures", ("picture", "caption")


def _size_of(record: Record) -> str:
    return str(record.shape) if isinstance(record, ClipRecord) else f"{record.bucket[0]}x{record.bucket[1]}"


def _pictures_of(record: Record, columns: int) -> list[Image.Image]:
    """As many as there are columns for pictures, empty places first."""

    if isinstance(record, ClipRecord):
        found = _frames_of(record)
    else:
        found = [read_image(path) for path in (*record.references, record.target)]
    pictures = [crop_to(picture, record.bucket, record.crop) for picture in found]
    return [Image.new("RGB", record.bucket, PAPER)] * (columns - len(pictures)) + pictures


def _frames_of(record: ClipRecord) -> list[Image.Image]:
    """Start, middle and last frame of a clip, in their own size."""
    clip = record.clip
    places = [clip.start, clip.start + clip.frames // 2, clip.start + clip.frames - 1]
    frames = [next(iterate_pictures(record.target, place, 1, clip.fps)) for place in places]
    return [*map(read_image, record.references), *frames[len(record.references) :]]


def image_grid(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str] = (),
    row_captions: Sequence[str] = (),
    cell: int = CELL,
) -> Image.Image:
    """Pictures in rows and columns, titles above, captions at the right.

    Args:
        rows: each picture is fitted into a square cell in its own aspect; rows may have different lengths.
        column_titles: one a column; one more is the title of the captions.
        row_captions: one a row; wrapped, and cut off where they do not fit beside the pictures.
        cell: px, side of the cells.

    Returns:
        one RGB picture.
    """

    columns = max((len(row) for row in rows), default=0)
    pitch = cell + MARGIN
    top = MARGIN + (TITLE_HEIGHT if column_titles else 0)
    width = MARGIN + columns * pitch + (CAPTION_WIDTH + MARGIN if row_captions else 0)
    sheet = Image.new("RGB", (width, top + len(rows) * pitch), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(column_titles):
        _write(draw, (MARGIN + column * pitch, MARGIN), title, CAPTION_WIDTH if column == columns else cell, 1)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            fitted = ImageOps.contain(picture.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
            left = MARGIN + column * pitch + (cell - fitted.width) // 2
            sheet.paste(fitted, (left, top + row * pitch + (cell - fitted.height) // 2))
            # A hairline, so that a white picture does not melt into the paper.
            edge = (left - 1, top + row * pitch + (cell - fitted.height) // 2 - 1)
            draw.rectangle((*edge, edge[0] + fitted.width + 1, edge[1] + fitted.height + 1), outline=(205, 208, 212))
    for row, caption in enumerate(row_captions):
        place = (MARGIN + columns * pitch, top + row * pitch)
        _write(draw, place, caption, CAPTION_WIDTH, max(cell // LINE_HEIGHT, 1))
    return sheet


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, lines: int) -> None:
    font = _font_for(text)
    wrapped = _wrap(text, font, width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], _shortened(wrapped[lines - 1], font, width)]
    for number, line in enumerate(wrapped):
        draw.text((place[0], place[1] + number * LINE_HEIGHT), line, fill=INK, font=font)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` px, broken between words, inside a word only if it is longer than a line."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in WORD_OR_CHARACTER.findall(paragraph):
            pieces = [word] if font.getlength(word) <= width else list(word)
            for piece in pieces:
                if line and font.getlength(line + piece) > width:
                    lines.append(line.rstrip())
                    line = ""
                line += piece if line else piece.lstrip()
        lines.append(line.rstrip())
    return lines


def _shortened(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def _font_for(text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font; for other writings one of the machine's, where there is one (else boxes are drawn)."""

    if any(character > LAST_WESTERN for character in text):
        wide = _wide_font()
        if wide is not None:
            return wide
    return ImageFont.load_default(FONT_SIZE)


@functools.cache
def _wide_font() -> ImageFont.FreeTypeFont | None:

    for name in WIDE_FONTS:
        try:
            return ImageFont.truetype(name, FONT_SIZE)
        except OSError:
            continue
    return None
