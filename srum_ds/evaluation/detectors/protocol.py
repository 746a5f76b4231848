"""What a detector must offer, and opening one by a model's folder or hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json
from srum_ds.evaluation.benchmarks import Detection


@runtime_checkable
class Detector(Protocol):
    """Finds objects of named classes in pictures."""

    @property
    def name(self) -> str:
        """How results call it: which model it is."""
        ...

    def detect(self, images: Sequence[Tensor], classes: Sequence[str]) -> list[list[Detection]]:
        """For each image (float [3, H, W] in [0, 1], of any sizes), the objects of these classes, likeliest first.

        Every detection's label is one of ``classes``. Scores are the model's own and nothing is cut off above
        ``LOWEST_SCORE``: a benchmark has its own thresholds. UserError for a class that the model cannot know.
        """
        ...


def load_detector(name: str, device: str = "cpu") -> Detector:
    """The detector of a model folder, or of a hub id: an open-vocabulary one, or a segmentation model.

    Folders with a ``model_type`` of universal segmentation (Mask2Former, MaskFormer, OneFormer) know the classes that
    they were trained on; any other is opened as zero-shot object detection (Grounding DINO, OWLv2, ...). Raises
    UserError where there is no such model.
    """
    # Deferred: transformers takes seconds to import, and detections read from a file need none of it.
    from srum_ds.evaluation.detectors.transformers import load_segmenter, load_zero_shot

    kind = _model_type(name)
    if kind in ("mask2former", "maskformer", "oneformer"):
        return load_segmenter(name, device)
    return load_zero_shot(name, device)


def _model_type(name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        from transformers import AutoConfig

        try:
            return str(AutoConfig.from_pretrained(name).model_type)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--detector {name}: neither a folder nor a model that the hub gives ({error.__class__.__name__}); "
                f"give a folder such as one of grounding-dino-tiny, owlv2-base-patch16-ensemble or "
                f"mask2former-swin-small-coco-instance, or detections made elsewhere by --detections FILE"
            ) from error
    try:
        return str(parse_json((folder / "config.json").read_text()).get("model_type", ""))
    except (OSError, ValueError) as error:
        raise UserError(f"--detector {name}: config.json cannot be read ({error})") from error
