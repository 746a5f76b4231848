"""Inputs that are nearly right, made by whatever draws numbers: ``random.Random`` with a seed, or hypothesis's."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ODD_TEXTS = (
    "",
    " ",
    "\n",
    "\ud800",
    "a\udc80b",
    "a\x00b",
    "\x1b[31m",
    "\u2028",
    "\u202e",
    "\ufeff",
    "７",
    "０．８",
    "٣",
    "½",
    "Ⅷ",
    "²",
    "NaN",
    "Infinity",
    "null",
    "true",
    "-",
    ".",
    "..",
    "/",
    "../x",
    "a/b",
    "~",
    "${oc.env:HOME}",
    "${",
    "{",
    "}",
    "[",
    "]",
    "'",
    '"',
    "\\",
    "%s",
    "{0}",
    "<think>",
    "</think>",
    "é",
    "e\u0301",
    "\U0001f600",
    "ß",
    "İ",
    "a" * 300,
)
ODD_NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    3,
    10,
    100,
    0.5,
    -0.5,
    1.5,
    -0.0,
    1e-320,
    1e308,
    -1e308,
    2**31,
    2**63,
    2**64,
    10**20,
    10**400,
    -(10**400),
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
)
# Written in the place of a value, as what no value of Python's becomes when it is written.
DEEP_LIST, DEEP_OBJECT, LONG_DIGITS, HUGE_FLOAT = "@deep-list@", "@deep-object@", "@long-digits@", "@huge-float@"
_RAW = {
    DEEP_LIST: "[" * 3000 + "]" * 3000,
    DEEP_OBJECT: '{"a":' * 3000 + "1" + "}" * 3000,
    LONG_DIGITS: "9" * 5000,
    HUGE_FLOAT: "1e999",
}


class Maker:
    """Draws inputs from a source of random numbers."""

    def __init__(self, source: random.Random) -> None:
        self.source = source

    def chance(self, share: float) -> bool:
        """True as often as ``share`` says."""
        return self.source.random() < share

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return int(self.source.random() * count)

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T], most: int) -> list[T]:
        """0 to ``most`` of the choices, with repeats."""
        return [self.pick(choices) for _ in range(self.below(most + 1))]

    def number(self) -> Any:
        """A number, plain or odd."""
        if self.chance(0.5):
            return self.pick(ODD_NUMBERS)
        return self.below(20) - 5 if self.chance(0.5) else self.source.random() * 4 - 2

    def digits(self) -> str:
        """A number as people write it, with a decimal comma, an exponent, other scripts' digits, or far too long."""
        plain = f"{self.source.random() * 3 - 1.5:.{self.below(4)}f}"
        kind = self.below(12)
        if kind == 0:
            return plain.replace(".", ",")
        if kind == 1:
            return plain.translate({ord(d): 0xFF10 + int(d) for d in "0123456789"})
        if kind == 2:
            return self.pick(("9" * 400, "1e400", "1e-400", "-.5", "+0.5", "5.", "0x1p3", "1_000", "--1", "٠٫٨", "nan"))
        if kind == 3:
            return f"{plain}/{self.pick(('10', '5', '0', '100', '1', '0.0', '9' * 320))}"
        if kind == 4:
            return f"{self.below(120)}{self.pick(('%', ' %', ' out of 10', '/10', ' of 100', ' per cent'))}"
        return str(self.below(12)) if kind == 5 else plain

    def text(self, words: Sequence[str] = (), most: int = 12) -> str:
        """Words, numbers and odd texts, joined anyhow."""
        parts = []
        for _ in range(self.below(most) + 1):
            kind = self.below(8)
            if kind < 5 and words:
                parts.append(self.pick(words))
            elif kind < 6:
                parts.append(self.digits())
            elif kind < 7:
                parts.append(self.pick(ODD_TEXTS))
            else:
                parts.append(chr(self.pick((32 + self.below(95), self.below(32), 0xA0 + self.below(0x2000)))))
        return self.pick(("", " ", "\n", ": ", ", ")).join(parts)

    def value(self, depth: int = 2) -> Any:
        """A value of JSON's kinds, odd more often than not."""
        kind = self.below(8)
        if kind < 2:
            return self.pick(ODD_TEXTS)
        if kind < 4:
            return self.number()
        if kind == 4:
            return self.pick((DEEP_LIST, DEEP_OBJECT, LONG_DIGITS, HUGE_FLOAT)) if self.chance(0.3) else None
        if depth == 0:
            return self.pick((None, [], {}, "x"))
        if kind == 5:
            return {self.pick(ODD_TEXTS): self.value(depth - 1) for _ in range(self.below(3))}
        return [self.value(depth - 1) for _ in range(self.below(4))]

    def changed(self, value: Any, most: int = 2, keep: float = 0.15) -> Any:
        """A copy of a value of JSON's kinds with up to ``most`` changes: dropped, renamed, of another type, nested."""
        if self.chance(keep):
            return copy.deepcopy(value)
        top = [copy.deepcopy(value)]
        for _ in range(self.below(most) + 1):
            self._change(top)
        return top[0]

    def _change(self, top: list[Any]) -> None:
        holder: Any = top
        key: Any = 0
        # Goes down from the top, and stops on the way now and then.
        while isinstance(holder[key], dict | list) and holder[key] and not self.chance(0.2):
            holder = holder[key]
            key = self.pick(list(holder)) if isinstance(holder, dict) else self.below(len(holder))
        kind = self.below(9)
        old = holder[key]
        if kind == 0 and holder is not top:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[self.pick((str(key).upper(), f"{key} ", f" {key}", self.pick(ODD_TEXTS)))] = holder.pop(key)
        elif kind == 2:
            holder[key] = self.pick(([old], {"a": old}, [old, old], str(old), {str(key): old}))
        elif kind == 3 and isinstance(holder, list) and holder is not top:
            holder.insert(self.below(len(holder)), copy.deepcopy(old))
        elif kind == 4 and isinstance(old, str):
            holder[key] = self.cut(old)
        elif kind == 5 and isinstance(holder, dict):
            holder[self.pick(ODD_TEXTS)] = self.value(1)
        elif kind == 6 and isinstance(old, int | float):
            holder[key] = self.number()
        else:
            holder[key] = self.value()

    def json(self, value: Any) -> str:
        """A value as JSON, spaced or not, with twin keys, a mark in front or other line ends now and then."""
        separators = self.pick(((",", ":"), (", ", ": ")))
        try:
            text = json.dumps(value, ensure_ascii=self.chance(0.6), separators=separators)
        except (ValueError, TypeError, RecursionError):
            text = repr(value)
        for mark, raw in _RAW.items():
            if mark in text:
                text = text.replace(f'"{mark}"', raw)
        if self.chance(0.05) and text.startswith("{") and len(text) > 2:
            text = f"{text[:-1]},{text[1:]}"
        if self.chance(0.04):
            text = "\ufeff" + text
        return self.cut(text) if self.chance(0.1) else text

    def lines(self, values: Sequence[Any]) -> str:
        """Values as lines of JSON."""
        end = "\r\n" if self.chance(0.1) else "\n"
        return end.join(self.json(value) for value in values) + (end if self.chance(0.8) else "")

    def cut(self, text: str) -> str:
        """A text with pieces removed, repeated, moved or put in."""
        for _ in range(self.below(3) + 1):
            a, b = sorted((self.below(len(text) + 1), self.below(len(text) + 1)))
            b = min(b, a + 40)
            piece = self.pick(
                (
                    "",
                    text[a:b] * 2,
                    text[a:b][::-1],
                    self.pick(ODD_TEXTS),
                    self.digits(),
                    self.pick('{}[]",:\n\t<>*#|-'),
                )
            )
            text = text[:a] + piece + text[b:] if self.chance(0.9) else text[:a]
        return text

    def damaged(self, data: bytes, keep: float = 0.05) -> bytes:
        """Bytes with some flipped, cut out, put in, repeated, zeroed, or set to numbers that lengths dislike."""
        if self.chance(keep):
            return data
        found = bytearray(data)
        for _ in range(self.below(4) + 1):
            at = self.below(len(found) + 1) if self.chance(0.6) else self.below(min(len(found), 600) + 1)
            size = self.pick((1, 2, 4, 8, 64, 512))
            kind = self.below(8)
            if kind == 0:
                del found[at:]
            elif kind == 1:
                del found[at : at + size]
            elif kind == 2:
                found[at:at] = bytes(self.below(256) for _ in range(min(size, 8)))
            elif kind == 3:
                found[at:at] = found[at : at + size]
            elif kind == 4:
                found[at : at + size] = bytes(min(size, max(len(found) - at, 0)))
            elif kind == 5:
                found[at : at + 4] = self.pick((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1"))
            elif at < len(found):
                found[at] = self.below(256) if kind == 6 else found[at] ^ (1 << self.below(8))
        return bytes(found)
