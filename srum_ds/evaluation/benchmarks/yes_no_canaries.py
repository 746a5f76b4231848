"""Pictures for canaries: made here, so that everyone knows what they show."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image, ImageDraw

from srum_ds.evaluation.benchmarks.protocol import Canary
from srum_ds.judges.protocol import Question, Reply

SIDE = 256


def blank() -> bytes:
    """A white picture, as PNG bytes."""
    return _png(Image.new("RGB", (SIDE, SIDE), "white"))


def two_discs() -> bytes:
    """Two red discs on white, as PNG bytes."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 80, 110, 170), fill="red")
    draw.ellipse((146, 80, 236, 170), fill="red")
    return _png(image)


def blue_square() -> bytes:
    """One blue square on white, as PNG bytes."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).rectangle((68, 68, 188, 188), fill="blue")
    return _png(image)


def yes_no_canaries(ask: Callable[[str, str], Question], share: Callable[[Reply], float | None]) -> tuple[Canary, ...]:
    """Questions about these pictures. ask: (key, text) -> a question. share: a reply -> P(yes) in [0, 1], or None."""

    def says(yes: bool) -> Callable[[Reply], bool]:
        def good(reply: Reply) -> bool:
            found = share(reply)
            return found is not None and (found > 0.5) is yes

        return good

    cases = (
        ("a blank picture shows no car", "Are there any cars in the image?", blank, False),
        ("a blank picture is not red", "Is the image mostly red?", blank, False),
        ("a blue square is no dog", "Are there any dogs in the image?", blue_square, False),
        ("two red discs are red", "Are there any red circles in the image?", two_discs, True),
        ("a blue square is blue", "Is there a blue square in the image?", blue_square, True),
    )
    return tuple(
        Canary(what, ask(f"canary-{n}", text), picture, says(yes)) for n, (what, text, picture, yes) in enumerate(cases)
    )


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
