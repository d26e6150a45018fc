"""What is said about the drawn world, in English and Chinese: captions of pictures and clips."""

from __future__ import annotations

from .world import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, Look

CHINESE = {
    "circle": "\u5706\u5f62",
    "square": "\u65b9\u5f62",
    "triangle": "\u4e09\u89d2\u5f62",
    "red": "\u7ea2\u8272",
    "green": "\u7eff\u8272",
    "blue": "\u84dd\u8272",
    "yellow": "\u9ec4\u8272",
    "purple": "\u7d2b\u8272",
    "orange": "\u6a59\u8272",
    "white": "\u767d\u8272",
    "black": "\u9ed1\u8272",
    "grey": "\u7070\u8272",
    "pink": "\u7c89\u8272",
    "middle": "\u4e2d\u95f4",
    "left": "\u5de6\u8fb9",
    "right": "\u53f3\u8fb9",
    "top": "\u4e0a\u9762",
    "bottom": "\u4e0b\u9762",
}

PLACES = {
    "middle": "in the middle",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}

ENGLISH_CAPTIONS = (
    "{article} {colour} {shape} {place} on a {background} background",
    "on a {background} background there is {article} {colour} {shape} {place}",
    "{background} background, {colour} {shape} {place}",
)
CHINESE_CAPTIONS = (
    "{background}\u80cc\u666f\u4e0a{position}\u6709\u4e00\u4e2a{colour}{shape}",
    "\u4e00\u4e2a{colour}{shape}\u5728{position}\uff0c\u80cc\u666f\u662f{background}",
)

MOVES = {
    "right": ("moves to the right", "\u5411\u53f3\u79fb\u52a8"),
    "left": ("moves to the left", "\u5411\u5de6\u79fb\u52a8"),
    "down": ("moves down", "\u5411\u4e0b\u79fb\u52a8"),
    "up": ("moves up", "\u5411\u4e0a\u79fb\u52a8"),
    "still": ("stays still", "\u9759\u6b62\u4e0d\u52a8"),
}
"""English and Chinese for where the shape of a clip goes."""

ENGLISH_CLIP_CAPTION = "{article} {colour} {shape} {move} on a {background} background"
CHINESE_CLIP_CAPTION = "{background}\u80cc\u666f\u4e0a{colour}{shape}{move}"


def picture_captions(look: Look) -> list[str]:
    """All wordings for one picture: the English ones, then the Chinese ones."""
    english = {
        "article": article(look.colour),
        "colour": look.colour,
        "shape": look.shape,
        "place": PLACES[look.position],
        "background": look.background,
    }
    chinese = {kind: CHINESE[getattr(look, kind)] for kind in ("shape", "colour", "background", "position")}
    return [
        *(template.format(**english) for template in ENGLISH_CAPTIONS),
        *(template.format(**chinese) for template in CHINESE_CAPTIONS),
    ]


def clip_captions(look: Look, direction: str) -> list[str]:
    """Both wordings for one clip, English and Chinese; `direction` is one of `MOVES`."""
    english, chinese = MOVES[direction]
    return [
        ENGLISH_CLIP_CAPTION.format(
            article=article(look.colour),
            colour=look.colour,
            shape=look.shape,
            background=look.background,
            move=english,
        ),
        CHINESE_CLIP_CAPTION.format(
            colour=CHINESE[look.colour], shape=CHINESE[look.shape], background=CHINESE[look.background], move=chinese
        ),
    ]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def english_words() -> list[str]:
    """Every word of the captions, once."""
    templates = (*ENGLISH_CAPTIONS, ENGLISH_CLIP_CAPTION)
    texts = [*templates, *PLACES.values(), *(english for english, _ in MOVES.values())]
    plain = [word.strip(",") for text in texts for word in text.split() if not word.startswith("{")]
    return list(dict.fromkeys([*plain, "an", *SHAPES, *COLOURS, *BACKGROUNDS, *POSITIONS]))


def chinese_words() -> list[str]:
    """Every word of the captions, once."""
    glue = ["\u80cc\u666f", "\u4e0a", "\u6709", "\u4e00\u4e2a", "\u5728", "\u662f", "\uff0c"]
    return list(dict.fromkeys([*CHINESE.values(), *glue, *(chinese for _, chinese in MOVES.values())]))
