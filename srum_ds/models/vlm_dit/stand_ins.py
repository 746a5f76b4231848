"""Stand-ins for a pipeline's components: with them it runs without weights, and says what it does with them.

A pipeline is asked, never copied: it runs with a denoiser that only hears what it is called with, or answers with
numbers that are known. Whatever a pipeline reads of a component beside calling it, the component itself answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Heard(Exception):
    """Ends a pipeline's call once its denoiser has heard what was wanted."""


class StandIn:
    """Answers for a component whatever is read of it."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Denoiser(StandIn):
    """Hears the calls of a denoiser; ``answer`` makes what it says, None ends the pipeline at the first call."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.calls: list[Mapping[str, Any]] = []
        self.answer: Callable[[Mapping[str, Any]], Tensor] | None = None

    def __call__(self, **given: Any) -> tuple[Tensor]:
        self.calls.append(given)
        if self.answer is None:
            raise Heard
        return (self.answer(given),)


class Encoder(StandIn):
    """The text encoder, which need not compute logits: no pipeline looks at them."""

    def __call__(self, **given: Any) -> Any:
        return self._real(**given, logits_to_keep=1)


class DryEncoder(StandIn):
    """Encodes every text as zeros of the encoder's width, without weights; ``read``: the last (ids, mask) it got."""

    dtype = torch.float32

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.read: list[tuple[Tensor, Tensor]] = []

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        self.read = [(input_ids, attention_mask)]
        text = self._real.config.text_config
        states_BLD = torch.zeros(*input_ids.shape, text.hidden_size, device=input_ids.device)
        return SimpleNamespace(hidden_states=(states_BLD,) * (text.num_hidden_layers + 1))


class NoSteps(StandIn):
    """A scheduler without steps: the pipeline decodes the latents that it is given."""

    order = 1

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.timesteps = torch.zeros(0)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Sets none."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is none."""


class AsDecoded:
    """An image processor that leaves a decoded image as it is."""

    def postprocess(self, image: Tensor, output_type: str = "pt", **_: Any) -> Tensor:
        """The image itself."""
        return image
