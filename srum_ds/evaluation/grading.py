"""Grades pictures the way their benchmark says: from pixels, by a judge's answers, or from a detector's boxes.

``score`` calls these. A picture that cannot be read, a judge that gave no usable answer and a picture that no detector
looked at are failures with a reason, never numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.image_files import decode_picture, open_picture, plain_png, read_image
from srum_ds.common.seeds import derive
from srum_ds.evaluation.benchmarks import Asks, Checks, Detection, Detects, Grade
from srum_ds.evaluation.detection_store import DetectionStore
from srum_ds.evaluation.detectors import Detector, RecordedDetections
from srum_ds.evaluation.picture_folder import Picture
from srum_ds.judges.protocol import Ask, PictureJudge, Reply
from srum_ds.judges.store import ReplyStore, ask_missing

BATCH = 100
"""Pictures in memory at once, where they are checked."""

SEED_BITS = 31

OnDone = Callable[[int, int], None]
"""(done, of all): told of progress."""


def grade_checked(checks: Checks, pictures: Sequence[Picture], where: str, on_done: OnDone) -> list[Grade]:
    """Grades from pixels, in order: 1 for an exact picture, else 0, and ``partial`` beside it.

    where: the folder, for the UserError about prompts that the benchmark cannot check.
    """
    checks.refuse([picture.prompt for picture in pictures], where)
    grades: list[Grade] = []
    for start in range(0, len(pictures), BATCH):
        grades += _checked(checks, pictures[start : start + BATCH])
        on_done(len(grades), len(pictures))
    return grades


def grade_asked(
    asks: Asks,
    pictures: Sequence[Picture],
    judge: PictureJudge,
    store: ReplyStore,
    on_done: OnDone,
    pictures_as_sent: Callable[[Path], bytes] | None = None,
) -> list[Grade]:
    """Grades by a judge's answers, in order; only what ``store`` lacks is asked.

    pictures_as_sent: gives the PNG bytes of a picture's file (default ``png_bytes``).
    """
    as_sent = pictures_as_sent or png_bytes
    questions = {picture.prompt.id: tuple(asks.questions(picture.prompt)) for picture in pictures}
    failures: dict[int, str] = {}
    owners: list[tuple[int, str]] = []
    total = sum(len(questions[picture.prompt.id]) for picture in pictures)

    def every() -> Iterator[Ask]:
        for number, picture in enumerate(pictures):
            try:
                png = as_sent(picture.path)
            except UserError as error:
                failures[number] = str(error)
                continue
            for question in questions[picture.prompt.id]:
                owners.append((number, question.key))
                yield Ask(question, png, derive("judge", picture.prompt.id, picture.sample) % 2**SEED_BITS)

    done = 0

    def told(_position: int, _reply: Reply) -> None:
        nonlocal done
        done += 1
        on_done(done, total)

    replies = ask_missing(judge, every(), store, told)
    by_picture: dict[int, dict[str, Reply]] = {}
    for (number, key), reply in zip(owners, replies, strict=True):
        by_picture.setdefault(number, {})[key] = reply
    grades = []
    for number, picture in enumerate(pictures):
        if number in failures:
            grades.append(Grade(None, failure=failures[number]))
        else:
            grades.append(asks.grade(picture.prompt, by_picture.get(number, {})))
    return grades


def grade_detected(
    detects: Detects,
    pictures: Sequence[Picture],
    folder: Path,
    detector: Detector | RecordedDetections,
    store: Path,
    on_done: OnDone,
) -> tuple[list[Grade], dict[tuple[str, int], Sequence[Detection]]]:
    """Grades from boxes, in order, and the boxes by (prompt's id, sample).

    detector: what finds them, or what somebody else found. store: the file that keeps what the former found.
    """
    boxes: dict[tuple[str, int], Sequence[Detection]] = {}
    grades: list[Grade] = []
    kept = None if isinstance(detector, RecordedDetections) else DetectionStore(store, detector)
    for picture in pictures:
        image = _opened(picture.path)
        if isinstance(image, str):
            grades.append(Grade(None, failure=image))
        else:
            found: Sequence[Detection] | None
            if isinstance(detector, RecordedDetections):
                found = detector.of(str(picture.path.relative_to(folder)))
            else:
                assert kept is not None
                found = kept.detections(picture.path, image, tuple(detects.classes([picture.prompt])))
            if found is None:
                assert isinstance(detector, RecordedDetections)
                grades.append(detector.missing(str(picture.path.relative_to(folder))))
            else:
                boxes[picture.prompt.id, picture.sample] = found
                grades.append(detects.grade(picture.prompt, found, image))
        on_done(len(grades), len(pictures))
    return grades, boxes


def png_bytes(path: Path) -> bytes:
    """A picture's file as it lies where it is a PNG that every reader sees alike, else the same picture as PNG.

    A damaged file is never sent: a judge would score what is left of it. Raises UserError for one.
    """
    try:
        data = file_bytes(path)
    except OSError:
        # The reader says it in its words.
        return _encoded(open_picture(path))
    picture = decode_picture(data, str(path))
    return data if plain_png(data) else _encoded(picture)


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _opened(path: Path) -> Tensor | str:
    """A picture's pixels, or why it cannot be read."""
    try:
        return read_image(path)
    except UserError as error:
        return str(error)


def _checked(checks: Checks, pictures: Sequence[Picture]) -> list[Grade]:
    images = [_opened(picture.path) for picture in pictures]
    grades: dict[int, Grade] = {}
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        if isinstance(image, str):
            grades[number] = Grade(None, failure=image)
        else:
            alike.setdefault(tuple(image.shape), []).append(number)
    for members in alike.values():
        stacked_NCHW = torch.stack([image for number in members if isinstance(image := images[number], Tensor)])
        outcomes = checks.check([pictures[number].prompt for number in members], stacked_NCHW)
        if len(outcomes) != len(members):
            raise UserError(f"the benchmark {checks.name} gave {len(outcomes)} outcomes of {len(members)} pictures")
        for number, outcome in zip(members, outcomes, strict=True):
            grades[number] = Grade(float(outcome.exact), {"partial": float(outcome.partial)})
    return [grades[number] for number in range(len(pictures))]
