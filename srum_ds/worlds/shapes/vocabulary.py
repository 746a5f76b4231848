"""Every word of the world's prompts, questions and answers."""

from __future__ import annotations

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
TEXTURES = ("solid", "striped")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("one", "two", "three", "four")
KINDS = ("color", "shape", "texture", "spatial", "numeracy", "complex")

PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
DIRECTION_OF = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
"""The one-word answer to "which way is X from Y?" for each relation."""

GRID = 4
CELLS = tuple(f"{column}{row}" for row in "abcd" for column in "ABCD")
"""Cell names in row-major order: column letter A-D left to right, row letter a-d top to bottom.

Letters alone: the tokenizer splits digits from letters, and an answer has to be one token.
"""

RGB = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "purple": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
}

_FUNCTION_WORDS = (
    "a",
    "and",
    "does",
    "from",
    "is",
    "object",
    "objects",
    "of",
    "picture",
    "show",
    "the",
    "there",
    "this",
    "way",
    "where",
    "which",
)

WORDS: tuple[str, ...] = (
    ("yes", "no", "?")
    + _FUNCTION_WORDS
    + COLORS
    + SHAPES
    + tuple(PLURALS.values())
    + TEXTURES
    + tuple(DIRECTION_OF.values())
    + NUMBERS
    + CELLS
)
"""Distinct words, in a fixed order; the question mark counts as a word of its own."""
