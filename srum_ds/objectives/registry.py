"""What an objective is: a loss per token of what a model predicts, and what it asks of the step.

The built-in ones stand in ``losses``; ``get_objective`` finds them, those of installed packages, and the user's own by
``module:name`` or ``file.py:name`` (docs/own_code.md). The training loop calls them through ``apply``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor

from srum_ds.common import foreign
from srum_ds.common.errors import UserError
from srum_ds.config.choices import OBJECTIVES
from srum_ds.config.schema import ObjectiveConfig
from srum_ds.models.protocol import Matching

WeightKind = Literal["signed", "positive", "group", "pair", "none"]


@dataclass(frozen=True)
class Terms:
    """What an objective may use of a micro-batch: B = N * M training views with T tokens each.

    prediction: what the trained model says, the only tensor with a gradient. old, reference: what the policy that drew
    the samples, and the untrained model, say of the same views; None where the objective does not ask for them.
    weights_BT: float32 token weights of the objective's kind. partner_B (int64): for weights of the kind "pair", the
    row of the other image of the pair, or the row itself. time_B: times in [0, 1], where the family's views have them.
    """

    matching: Matching
    prediction: Tensor
    target: Tensor
    weights_BT: Tensor | None = None
    old: Tensor | None = None
    reference: Tensor | None = None
    partner_B: Tensor | None = None
    time_B: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """The token weights [B, T], detached. ValueError without."""
        return _needed(self.weights_BT, "weights_BT").detach().float()

    @property
    def energy(self) -> Tensor:
        """The prediction's energy [B, T], with its gradient."""
        return self.matching.energy(self.prediction, self.target)

    @property
    def old_energy(self) -> Tensor:
        """The energy [B, T] of the policy that drew the samples, a constant. ValueError without."""
        return self.matching.energy(self.old_prediction, self.target).detach()

    @property
    def reference_energy(self) -> Tensor:
        """The untrained model's energy [B, T], a constant. ValueError without."""
        return self.matching.energy(_needed(self.reference, "the reference model's prediction"), self.target).detach()

    @property
    def old_prediction(self) -> Tensor:
        """What the policy that drew the samples says, a constant. ValueError without."""
        return _needed(self.old, "the old policy's prediction").detach()

    @property
    def partners(self) -> Tensor:
        """The rows of the other images of the pairs, int64 [B]. ValueError without."""
        return _needed(self.partner_B, "partner_B")


@dataclass(frozen=True)
class Mixtures:
    """A loss as a weighted sum of energies: sum_k a_k E of the mixture (1 - s_k) old + s_k prediction.

    shares: s_k. coefficient_KBT: a_k, constants. old: what is mixed with; None where every share is 1.
    """

    shares: tuple[float, ...]
    coefficient_KBT: Tensor
    old: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """A loss and what it needs.

    losses: from ``Terms`` and the settings ``objective.*`` to a loss for every token [B, T], float32.
    weights: "signed" in [-1, 1], "group" (the same, each token against its group's), "positive" >= 0,
    "pair" (1, -1 or 0 on a whole image), or "none". source: the paper. needs_old, needs_reference: the predictions
    that it takes beside the trained one (the constraint asks for its own). compares_samples: it learns nothing from
    one image per prompt. mixtures: the same losses as ``Mixtures``, where energies and divergences are squared
    distances and a matching has these in one pass; None where the losses are no such sum.
    """

    losses: Callable[[Terms, ObjectiveConfig], Tensor]
    weights: WeightKind
    source: str
    needs_old: bool = False
    needs_reference: bool = False
    compares_samples: bool = False
    mixtures: Callable[[Terms, ObjectiveConfig], Mixtures] | None = None

    @property
    def uses_reward(self) -> bool:
        """Whether the judge's scores move it."""
        return self.weights != "none"

    @property
    def same_views(self) -> bool:
        """Whether the samples of a prompt are trained on the same views, so that their losses can be compared."""
        return self.weights == "pair"


def get_objective(name: str) -> Objective:
    """The objective of this name. UserError for an unknown one, and for code that is no ``Objective``."""
    found = OBJECTIVES.get(name)
    if not isinstance(found, Objective):
        raise UserError(
            f"objective.name={name}: is {type(found).__name__}, expected an srum_ds.objectives.Objective; see "
            f"docs/own_code.md"
        )
    return found if name in OBJECTIVES.builtin else guarded(f"objective.name={name}", found)


def guarded(name: str, objective: Objective) -> Objective:
    """An objective of foreign code, which is given copies and whose losses are looked at. name: for messages."""

    def losses(terms: Terms, settings: ObjectiveConfig) -> Tensor:
        found = foreign.run(name, lambda: objective.losses(_copied(terms), copy.deepcopy(settings)))
        tokens = terms.prediction.shape[:2]
        expected = f"losses {list(tokens)} of a floating type on {terms.prediction.device}, one for each token"
        whole = isinstance(found, Tensor) and found.shape == tokens and found.is_floating_point()
        if not whole or found.device != terms.prediction.device:
            raise foreign.wrong(name, found, expected)
        if terms.prediction.requires_grad and not found.requires_grad:
            raise foreign.wrong(name, found, f"{expected}, computed from terms.prediction: these have no gradient")
        return found.float()

    if not callable(objective.losses):
        raise foreign.wrong(f"{name}: losses", objective.losses, "a function from Terms and settings to losses [B, T]")
    own = objective.mixtures

    def mixtures(terms: Terms, settings: ObjectiveConfig) -> Mixtures:
        assert own is not None
        what = f"{name}: mixtures"
        found = foreign.run(what, lambda: own(_copied(terms), copy.deepcopy(settings)))
        expected = f"Mixtures with K shares and coefficients [K, {', '.join(map(str, terms.prediction.shape[:2]))}]"
        if not isinstance(found, Mixtures) or not isinstance(found.coefficient_KBT, Tensor):
            raise foreign.wrong(what, found, expected)
        if found.coefficient_KBT.shape != (len(found.shares), *terms.prediction.shape[:2]):
            raise foreign.wrong(f"{what}, coefficient_KBT", found.coefficient_KBT, expected)
        return found

    return replace(objective, losses=losses, mixtures=None if own is None else mixtures)


def _copied(terms: Terms) -> Terms:
    """The terms with tensors of their own; the prediction's copy passes its gradient on."""
    own: dict[str, Any] = {}
    for one in fields(terms):
        value = getattr(terms, one.name)
        if isinstance(value, Tensor):
            own[one.name] = value.clone()
    return replace(terms, **own)


def _needed(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise ValueError(f"this objective needs {what}")
    return value
