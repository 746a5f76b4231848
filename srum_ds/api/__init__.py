"""What Python programs and notebooks use, by ``from srum_ds import Trainer, load_model, ...`` (docs/python.md)."""

from srum_ds.api.evaluating import evaluate
from srum_ds.api.judging import Judgement, judge
from srum_ds.api.model import Model, load_model
from srum_ds.api.pictures import Pictures
from srum_ds.api.trainer import Trainer, TrainResult

__all__ = ["Judgement", "Model", "Pictures", "TrainResult", "Trainer", "evaluate", "judge", "load_model"]
