"""Checks that train nothing: shapes, what is refused, the same in any batch, and the grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.contract.subject import ANSWERS, KEYS, PROMPTS, QUESTIONS, TEXTS, Subject, apart, expect, refused
from srum_ds.models.protocol import UnifiedModel
from srum_ds.types import Prompt

ROUNDING = 1e-4
"""How far numbers may lie apart, relative to the largest, that only their batch tells apart."""


# ---- shapes


def describes_itself(subject: Subject) -> str:
    family = subject.family
    expect(bool(family.modes), "modes is empty: model.trains could say nothing")
    expect(is_dataclass(family.sampling_type), f"sampling_type {family.sampling_type} is no dataclass")
    known = {field.name for field in fields(family.sampling_type)}
    unknown = sorted(set(family.edit_sampling or {}) - known)
    expect(not unknown, f"edit_sampling sets {', '.join(unknown)}, which the sampler does not have")
    expect(family.matches(subject.folder), f"matches() does not know {subject.folder}")
    facts, text = family.inspect(subject.folder)
    json.dumps(dict(facts))
    expect(bool(text.strip()), "inspect() says nothing in words")
    return f"kind {family.kind}, modes {', '.join(family.modes)}, sampler settings {', '.join(sorted(known))}"


def has_every_method(subject: Subject) -> str:
    missing = [name for name in _members(UnifiedModel) if not hasattr(subject.model, name)]
    expect(not missing, f"missing: {', '.join(missing)}")
    return f"{len(_members(UnifiedModel))} members"


def _members(protocol: type) -> list[str]:
    """Public names that a protocol and its bases define."""
    return sorted({name for base in protocol.__mro__[:-1] for name in vars(base) if not name.startswith("_")})


def draws_shapes(subject: Subject) -> str:
    tokens, images = subject.drawn
    height, width = subject.model.default_size()
    rows, columns = subject.grid
    spec = subject.model.token_spec
    expect(spec.fits(tokens), f"tokens {tuple(tokens.shape)} {tokens.dtype} are not {spec}")
    expect(tokens.shape[:2] == (len(TEXTS), rows * columns), f"tokens {tuple(tokens.shape)} for a grid {subject.grid}")
    expect(images.shape == (len(TEXTS), 3, height, width), f"images {tuple(images.shape)}, expected {height} x {width}")
    levels = images.float() * 255
    expect(bool(((images >= 0) & (images <= 1)).all()), "images leave [0, 1]")
    expect(bool((levels - levels.round()).abs().max() < 1e-3), "images are not multiples of 1/255")
    return f"{height} x {width} pixels, {rows} x {columns} tokens, {spec.kind} of {spec.size}"


def trains_shapes(subject: Subject) -> str:
    view, model = subject.views(), subject.model
    n, m, t = view.counts_NMT.shape
    expect((n, t) == subject.drawn[0].shape[:2], f"counts_NMT {(n, m, t)} for {tuple(subject.drawn[0].shape)} tokens")
    expect(view.counts_NMT.dtype == torch.bool and bool(view.counts_NMT.any()), "counts_NMT: no token counts")
    expect(view.target.shape[:3] == (n, m, t), f"target {tuple(view.target.shape)} for counts {(n, m, t)}")
    for name, tensor in view.inputs.items():
        expect(tensor.shape[:2] == (n, m), f"inputs[{name!r}] {tuple(tensor.shape)} does not begin with {(n, m)}")
    with torch.no_grad():
        prediction = subject.predict(model).flatten(0, 1)
    expect(prediction.shape[:2] == (n * m, t), f"predictions {tuple(prediction.shape)} for {(n, m, t)} tokens")
    target = view.target.flatten(0, 1)
    energy = model.matching.energy(prediction, target)
    itself = model.matching.divergence(prediction, prediction)
    expect(energy.shape == itself.shape == (n * m, t), f"energies {tuple(energy.shape)}, expected {(n * m, t)}")
    expect(bool(torch.isfinite(energy).all() and (energy >= 0).all()), "energies are not all finite and >= 0")
    expect(float(itself.abs().max()) < ROUNDING, "a prediction diverges from itself")
    mixed = model.matching.mix(prediction, prediction, 0.5)
    expect(apart(mixed, prediction) < ROUNDING, "a mixture of a prediction with itself is another one")
    return f"{n} images, {m} views, {t} tokens; mean energy {float(energy.mean()):.4g}"


def judges_shapes(subject: Subject) -> str:
    chances, texts, answers = subject.judged(subject.model)
    count = len(QUESTIONS)
    expect(chances.shape == (count, len(ANSWERS)), f"answer_logprobs {tuple(chances.shape)}, expected {count} x 2")
    expect(texts.shape == (count,), f"text_logprob {tuple(texts.shape)}, expected ({count},)")
    for what, numbers in (("answer_logprobs", chances), ("text_logprob", texts)):
        expect(numbers.dtype == torch.float32, f"{what} are {numbers.dtype}, expected float32")
        expect(bool((numbers <= 0).all() and torch.isfinite(numbers).all()), f"{what} are no log-probabilities")
    expect(len(answers) == count and all(isinstance(text, str) for text in answers), "answer gives no texts")
    none = subject.model.answer_logprobs([], [], ANSWERS)
    expect(none.shape == (0, len(ANSWERS)), f"answer_logprobs of no questions {tuple(none.shape)}, expected 0 x 2")
    return f"{count} questions, {len(ANSWERS)} answers"


def refuses(subject: Subject) -> str:
    model = subject.model
    refused("an empty prompt", lambda: model.check_prompts([Prompt("empty", " ")]))
    refused("a size of 1 x 1 pixels", lambda: model.grid(1, 1))
    refused("a mode that is none", lambda: model.trainable("no such mode"))
    optional: dict[str, Callable[[], object]] = {
        "plans": lambda: model.plan(PROMPTS[:1], 2),
        "edits": lambda: model.generate(
            PROMPTS[:1], KEYS[:1], subject.grid, subject.sampling, list(subject.drawn[1][:1])
        ),
    }
    found = []
    for what, work in optional.items():
        try:
            work()
            found.append(f"{what}: yes")
        except UserError:
            found.append(f"{what}: no")
    return ", ".join(found)


# ---- the same in any batch


def same_image(subject: Subject) -> str:
    tokens, images = subject.drawn
    again, _ = subject.draw(subject.model)
    expect(torch.equal(again, tokens), "drawn twice, the tokens are not the same")
    farthest = 0.0
    for row in range(len(TEXTS)):
        alone, image = subject.draw(subject.model, slice(row, row + 1))
        farthest = max(farthest, apart(alone[0], tokens[row]))
        levels = (image[0] - images[row]).abs() * 255
        expect(
            farthest < ROUNDING and float(levels.max()) < 1.5,
            f"image {row} alone: its tokens differ by {farthest:.2g}, its pixels by {float(levels.max()):.0f} of 255",
        )
    other, _ = subject.model.generate(PROMPTS, KEYS[::-1], subject.grid, subject.sampling)
    expect(not torch.equal(other[0], tokens[0]), "another key gives the same image")
    return f"tokens alone and among others differ by {farthest:.2g} at most"


def same_views(subject: Subject) -> str:
    whole, prediction = subject.views(), _without_gradient(subject)
    farthest = 0.0
    for row in range(len(TEXTS)):
        one = slice(row, row + 1)
        alone = subject.views(one)
        for name, tensor in {**alone.inputs, "target": alone.target, "counts": alone.counts_NMT}.items():
            there = {**whole.inputs, "target": whole.target, "counts": whole.counts_NMT}[name]
            expect(torch.equal(tensor[0], there[row]), f"{name} of image {row} is another one without the others")
        farthest = max(farthest, apart(_without_gradient(subject, one)[0], prediction[row]))
    expect(farthest < ROUNDING, f"predictions alone and among others differ by {farthest:.2g}")
    return f"views are equal; predictions alone and among others differ by {farthest:.2g} at most"


def _without_gradient(subject: Subject, some: slice = slice(None)) -> Tensor:
    with torch.no_grad():
        return subject.predict(subject.model, some)


def same_answers(subject: Subject) -> str:
    chances, texts, answers = subject.judged(subject.model)
    farthest = 0.0
    for row in range(len(QUESTIONS)):
        alone = subject.judged(subject.model, slice(row, row + 1))
        farthest = max(farthest, apart(alone[0][0], chances[row]), apart(alone[1][0], texts[row]))
        expect(
            alone[2] == answers[row : row + 1], f"answer {row} is {alone[2][0]!r} alone, {answers[row]!r} among others"
        )
    expect(farthest < ROUNDING, f"log-probabilities alone and among others differ by {farthest:.2g}")
    return f"log-probabilities alone and among others differ by {farthest:.2g} at most"


# ---- the grid


def corner(subject: Subject) -> str:
    """The loss of a box in the image's upper left corner reaches exactly the tokens that lie there."""
    rows, columns = subject.grid
    high = max(1, rows // 2)
    box = (0.0, 0.0, 0.9 / columns, (high - 0.1) / rows)
    view = subject.views()
    prediction = _without_gradient(subject).flatten(0, 1).requires_grad_(True)
    energy_BT = subject.model.matching.energy(prediction, view.target.flatten(0, 1))
    (cell_shares(box, subject.grid).flatten() * energy_BT).sum().backward()
    assert prediction.grad is not None
    reached_T = prediction.grad.reshape(*prediction.shape[:2], -1).abs().amax(dim=(0, 2)) > 0
    counts_T = view.counts_NMT.flatten(0, 1).any(dim=0)
    expected_T = torch.zeros(rows * columns, dtype=torch.bool)
    expected_T[: high * columns : columns] = True
    found = reached_T.nonzero()[:, 0].tolist()
    expect(torch.equal(reached_T, expected_T & counts_T), f"a box over the corner reaches the tokens {found}")
    height, width = subject.model.default_size()
    expect(height % rows == 0 and width % columns == 0, f"{height} x {width} pixels are no {rows} x {columns} cells")
    try:
        tall = subject.model.grid(height, width // 2)
    except UserError:
        return f"a grid of {rows} x {columns}; only squares"
    expect(tall == (rows, columns // 2), f"half the width has a grid of {tall}, expected {(rows, columns // 2)}")
    return f"a grid of {rows} x {columns}, cells of {height // rows} x {width // columns} pixels"


def cell_shares(box: tuple[float, float, float, float], grid: tuple[int, int]) -> Tensor:
    """Share [h, w] of every cell of a grid that a box (x0, y0, x1, y1 in [0, 1]) covers."""
    x0, y0, x1, y1 = box
    rows, columns = grid

    def covered(low: float, high: float, cells: int) -> Tensor:
        edges = torch.arange(cells + 1, dtype=torch.float64) / cells
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells

    return (covered(y0, y1, rows)[:, None] * covered(x0, x1, columns)[None, :]).float()
