"""An objective: signed weights, and a pull towards the policy that drew the samples: w E + s D.

objective.name=objective.py:PROXIMAL objective.options.strength=2
"""

from torch import Tensor

from srum_ds.config.schema import ObjectiveConfig
from srum_ds.objectives import Objective, Terms


def proximal(terms: Terms, settings: ObjectiveConfig) -> Tensor:
    """[B, T] float32; bounded from below for s > 1, since weights lie in [-1, 1]."""
    strength = float(settings.options.get("strength", 2.0))
    divergence_BT = terms.matching.divergence(terms.prediction, terms.old_prediction)
    return terms.weights * terms.energy + strength * divergence_BT


PROXIMAL = Objective(
    proximal,
    weights="signed",  # in [-1, 1]; also "positive", "group", "pair", or "none" for no reward
    source="docs/extending.md",
    needs_old=True,  # terms.old_prediction is there
    compares_samples=True,  # one image per prompt would teach nothing
)
