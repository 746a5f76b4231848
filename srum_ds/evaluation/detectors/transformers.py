"""Detectors of transformers: open-vocabulary ones (Grounding DINO, OWLv2) and universal segmentation (Mask2Former)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.finite import refuse_module
from srum_ds.evaluation.benchmarks import Detection
from srum_ds.evaluation.benchmarks.masks import encode_mask

LOWEST_SCORE = 0.05
"""Detections below are not handed on: far below any threshold of a benchmark."""

BATCH = 8
"""Pictures in one forward pass."""

# What a model that was trained on COCO calls a class of GenEval.
COCO_NAMES = {
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
    "hair drier": "hair drier",
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}


class ZeroShotDetector:
    """An open-vocabulary model. OWLv2 and its like take all classes at once; Grounding DINO is asked one by one.

    Grounding DINO reads one sentence and answers with spans of it, which may join two classes or cut one in half; with
    one class a sentence every detection's label is certain. It takes as many passes as there are classes, so hand it
    those of one prompt, not of a whole benchmark.
    """

    def __init__(self, name: str, model: Any, processor: Any, device: str) -> None:
        self.name = name
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._device = device
        self._by_sentence = model.config.model_type in ("grounding-dino", "mm-grounding-dino")

    def detect(self, images: Sequence[Tensor], classes: Sequence[str]) -> list[list[Detection]]:
        """See ``Detector``; the boxes have no masks."""
        found: list[list[Detection]] = [[] for _ in images]
        asked = [[name] for name in classes] if self._by_sentence else [list(classes)]
        for places in _batches(images):
            for names in asked:
                if names:
                    detected = self._pass([images[place] for place in places], names)
                    for place, detections in zip(places, detected, strict=True):
                        found[place] += detections
        return [sorted(one, key=lambda detection: -detection.score) for one in found]

    @torch.no_grad()
    def _pass(self, images: Sequence[Tensor], names: Sequence[str]) -> list[list[Detection]]:
        text = [f"{names[0].lower()}." for _ in images] if self._by_sentence else [list(names) for _ in images]
        inputs = self._processor(images=_pictures(images), text=text, return_tensors="pt")
        outputs = self._model(**inputs.to(self._device))
        # The processor knows what it padded, so it has to scale the boxes; ``_boxed`` makes shares of pixels.
        sizes = [_size(image) for image in images]
        process = self._processor.image_processor.post_process_object_detection
        results = process(outputs, threshold=LOWEST_SCORE, target_sizes=sizes)
        return [_boxed(result, names, size, self._by_sentence) for result, size in zip(results, sizes, strict=True)]


class SegmentingDetector:
    """A universal segmentation model with the classes that it was trained on; boxes are those around its masks."""

    def __init__(self, name: str, model: Any, processor: Any, device: str) -> None:
        self.name = name
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._device = device
        self._names: Mapping[int, str] = {int(key): str(label) for key, label in model.config.id2label.items()}

    def detect(self, images: Sequence[Tensor], classes: Sequence[str]) -> list[list[Detection]]:
        """See ``Detector``. UserError names the classes that the model was not trained on."""
        wanted = self._wanted(classes)
        found: list[list[Detection]] = [[] for _ in images]
        for places in _batches(images):
            detected = self._pass([images[place] for place in places], wanted)
            for place, detections in zip(places, detected, strict=True):
                found[place] = detections
        return found

    def _wanted(self, classes: Sequence[str]) -> dict[int, str]:
        known = {label.lower(): key for key, label in self._names.items()}
        wanted: dict[int, str] = {}
        unknown = []
        for name in classes:
            label = known.get(name.lower(), known.get(COCO_NAMES.get(name.lower(), "")))
            if label is None:
                unknown.append(name)
            else:
                wanted[label] = name
        if unknown:
            raise UserError(
                f"--detector {self.name}: was not trained on {', '.join(unknown)} (it knows "
                f"{', '.join(list(self._names.values())[:5])}, ... {len(self._names)} in all); use an open-vocabulary "
                f"model such as grounding-dino or owlv2, or a model trained on COCO instances"
            )
        return wanted

    @torch.no_grad()
    def _pass(self, images: Sequence[Tensor], wanted: Mapping[int, str]) -> list[list[Detection]]:
        inputs = self._processor(images=_pictures(images), return_tensors="pt")
        outputs = self._model(**inputs.to(self._device))
        sizes = [_size(image) for image in images]
        results = self._processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
        )
        return [_masked(result, wanted) for result in results]


def load_zero_shot(name: str, device: str) -> ZeroShotDetector:
    """A zero-shot object detection model. UserError where the folder or hub id holds none."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model, processor = _load(AutoModelForZeroShotObjectDetection, AutoProcessor, name)
    return ZeroShotDetector(name, model, processor, device)


def load_segmenter(name: str, device: str) -> SegmentingDetector:
    """A universal segmentation model. UserError where the folder or hub id holds none."""
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    model, processor = _load(AutoModelForUniversalSegmentation, AutoImageProcessor, name)
    return SegmentingDetector(name, model, processor, device)


def _load(model: Any, processor: Any, name: str) -> tuple[Any, Any]:
    try:
        opened = model.from_pretrained(name), processor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--detector {name}: cannot be opened as {model.__name__} ({error}); expected a folder with config.json, "
            f"*.safetensors and preprocessor_config.json of Grounding DINO, OWLv2 or Mask2Former"
        ) from error
    refuse_module(opened[0], name)
    return opened


def _batches(images: Sequence[Tensor]) -> list[list[int]]:
    """Places of pictures for one pass each: of one size, because masks of a padded batch come back stretched."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(tuple(image.shape), []).append(place)
    return [places[start : start + BATCH] for places in by_size.values() for start in range(0, len(places), BATCH)]


def _size(image_CHW: Tensor) -> tuple[int, int]:
    return image_CHW.shape[-2], image_CHW.shape[-1]


def _pictures(images: Sequence[Tensor]) -> list[np.ndarray]:
    """Pictures as uint8 [H, W, 3], what every processor takes."""
    return [
        (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for image in images
    ]


def _boxed(result: Mapping[str, Any], names: Sequence[str], size: tuple[int, int], alone: bool) -> list[Detection]:
    height, width = size
    found = []
    for score, label, box in zip(result["scores"].tolist(), result["labels"].tolist(), result["boxes"], strict=True):
        x0, y0, x1, y1 = (box / torch.tensor([width, height, width, height], device=box.device)).clamp(0, 1).tolist()
        if x0 < x1 and y0 < y1:
            # With one class a sentence, the "label" is a place in the sentence.
            found.append(Detection(names[0] if alone else names[int(label)], score, (x0, y0, x1, y1)))
    return found


def _masked(result: Mapping[str, Any], wanted: Mapping[int, str]) -> list[Detection]:
    found = []
    masks = result["segmentation"]
    for place, info in enumerate(result["segments_info"]):
        score = float(info["score"])
        if int(info["label_id"]) not in wanted or score < LOWEST_SCORE:
            continue
        mask_HW = masks[place] > 0.5
        box = _around(mask_HW)
        if box is not None:
            found.append(Detection(wanted[int(info["label_id"])], score, box, encode_mask(mask_HW)))
    return sorted(found, key=lambda detection: -detection.score)


def _around(mask_HW: Tensor) -> tuple[float, float, float, float] | None:
    height, width = mask_HW.shape
    rows = mask_HW.any(dim=1).nonzero()[:, 0]
    columns = mask_HW.any(dim=0).nonzero()[:, 0]
    if rows.numel() == 0:
        return None
    return (
        int(columns[0]) / width,
        int(rows[0]) / height,
        (int(columns[-1]) + 1) / width,
        (int(rows[-1]) + 1) / height,
    )
