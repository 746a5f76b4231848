"""The nouns of one training step, and nothing of any model: what rooms hand to each other.

Every image is a grid of tokens, row-major, whatever design drew it. Tokens are continuous (C channels) or discrete
(one of V codes); a ``TokenSpec`` says which. Shape suffixes: docs/notation.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    # Whoever holds a tensor has imported torch; prompts are read without it, in a tenth of the time.
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt set.

    ``name`` (not the position in a batch) seeds everything random about the prompt. ``phrases`` are
    the object phrases a region may be judged against, empty when unknown. ``epoch`` says which pass
    over the prompts this is.
    """

    id: str
    text: str
    category: str = ""
    phrases: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """The id, and the epoch after the first: a batch across an epoch's end may hold a prompt twice."""
        return self.id if self.epoch == 0 else f"{self.id} epoch {self.epoch}"


@dataclass(frozen=True)
class TokenSpec:
    """What one token of an image is: ``size`` channels (continuous) or one of ``size`` codes (discrete).

    Continuous tokens of N images are float32 [N, T, size], discrete ones int64 [N, T]. It stands in the header of
    rollout shards. It also knows how wide tokens lie and how far two images' tokens are apart, which is what the
    metrics watch: a generator that trains on its own images loses spread before anyone can see it.
    """

    kind: Literal["continuous", "discrete"]
    size: int

    def fits(self, tokens: Tensor) -> bool:
        """Whether a tensor [N, T, C] or [N, T] holds tokens of this kind; codes are not looked at one by one."""
        if self.kind == "continuous":
            return tokens.ndim == 3 and tokens.shape[-1] == self.size and tokens.is_floating_point()
        import torch

        return tokens.ndim == 2 and tokens.dtype == torch.int64

    def moments(self, tokens: Tensor) -> tuple[float, float, int]:
        """(sum, sum of squares, count) of the tokens' numbers, to be added up over ranks.

        Continuous: over all channels. Discrete: of the codes as one-hot vectors, centred within each image, so that
        sqrt(squares / count) is 0 where an image has one code everywhere and near 1 where no code repeats.
        """
        if self.kind == "continuous":
            numbers = tokens.double()
            return float(numbers.sum()), float(numbers.square().sum()), numbers.numel()
        import torch

        squares = 0.0
        for codes_T in tokens:
            shares = torch.unique(codes_T, return_counts=True)[1].double() / codes_T.numel()
            squares += codes_T.numel() * (1.0 - float(shares.square().sum()))
        return 0.0, squares, tokens.numel()

    def mean_distance(self, tokens_KT: Tensor) -> float:
        """Mean distance of the pairs among K images, K >= 2.

        Continuous: root of the mean squared difference over tokens and channels; independent tokens of unit scale give
        sqrt(2). Discrete: share of the places where the codes differ.
        """
        import torch

        members = tokens_KT.detach().double().flatten(start_dim=1)
        if self.kind == "continuous":
            return float(torch.pdist(members).mean()) / float(members.shape[1] ** 0.5)
        return float(torch.pdist(members, p=0).mean()) / members.shape[1]


@dataclass(frozen=True)
class Samples:
    """N generated images: K samples for each prompt, the samples of one prompt adjacent.

    images_NCHW: float in [0, 1]; one that could not be drawn is NaN throughout. tokens: exactly as sampled, never
    re-encoded, [N, T, C] float32 or [N, T] int64 (``TokenSpec``), row-major over ``grid`` = (h, w), T = h * w.
    ``group_N`` says which samples share a prompt (0..P-1); ``sample_N`` is the sample's index within its prompt.
    """

    prompts: tuple[Prompt, ...]
    group_N: Tensor
    sample_N: Tensor
    images_NCHW: Tensor
    tokens: Tensor
    grid: tuple[int, int]

    def prompt_of_each(self) -> list[Prompt]:
        """The prompt of each of the N images. ValueError where prompts and groups do not match."""
        groups = int(self.group_N.max()) + 1 if self.group_N.numel() else 0
        if len(self.prompts) != groups:
            raise ValueError(f"there are {len(self.prompts)} prompts for {groups} groups of pictures")
        return [self.prompts[group] for group in self.group_N.tolist()]

    @cached_property
    def finite_N(self) -> Tensor:
        """bool [N], on the CPU: the images whose pixels and tokens are all finite. The others are no images."""
        return all_finite(self.images_NCHW, self.tokens)

    def finite(self) -> Samples:
        """The same, with zeros for every number that is not finite; itself where there is none."""
        if bool(self.finite_N.all()):
            return self
        images_NCHW, tokens = (x.nan_to_num(0.0, 0.0, 0.0) for x in (self.images_NCHW, self.tokens))
        return replace(self, images_NCHW=images_NCHW, tokens=tokens)


def all_finite(*values: Tensor) -> Tensor:
    """bool [N], on the CPU, of values [N, ...] on one device: whether all that belong to one are finite."""
    import torch

    return torch.stack([x.isfinite().flatten(1).all(dim=1) for x in values]).all(dim=0).cpu()


@dataclass(frozen=True)
class Regions:
    """R boxes over N images, in normalised image coordinates.

    ``owner_R`` (int64) is the image each box lies in, ascending. ``boxes_R4`` (float32) holds
    x0, y0, x1, y1 in [0, 1] with x0 < x1 and y0 < y1. ``asked``: answers of the judge that finding
    the boxes took; ``failed``: how many of them could not be used.
    """

    owner_R: Tensor
    boxes_R4: Tensor
    asked: int = 0
    failed: int = 0

    def __len__(self) -> int:
        return int(self.owner_R.numel())


class Status(IntEnum):
    """How a judge's answer ended. A failed score is masked out, never a number."""

    PARSED = 0
    CLAMPED = 1
    FAILED = 2


@dataclass(frozen=True)
class Failure:
    """A request whose reply could not be used: about image ``picture``, or its region ``region``.

    ``region`` indexes the batch's regions, -1 for the whole image. ``template``: name and hash.
    """

    picture: int
    region: int
    question: str
    reply: str
    template: str


@dataclass(frozen=True)
class Scores:
    """What the judge said: scores in [-1, 1], NaN exactly where the status is FAILED.

    ``phrase_R`` is the index of the phrase (of the owner's prompt) each region was matched to, -1
    for a region no phrase claims. ``missing_N`` is the share of the objects a prompt asks for that no
    region of the image shows, in [0, 1]; None when nobody looked. ``raw``: the reply, or the
    answers' probabilities, behind each of the N + R scores, images first. ``status_Q`` (int64): how
    each of the Q requests ended; a region is asked about several phrases. ``failures``: those of them
    that failed. ``by_judge``: where several judges were asked, what each of them (the model's own is ``own``) said of
    the N whole images before their scores were mixed, float32, NaN where it failed.
    """

    global_N: Tensor
    global_status_N: Tensor
    local_R: Tensor
    local_status_R: Tensor
    phrase_R: Tensor
    raw: tuple[str, ...] = ()
    missing_N: Tensor | None = None
    status_Q: Tensor | None = None
    failures: tuple[Failure, ...] = ()
    by_judge: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """Images with their regions and scores: one micro-batch as a step's source hands it over."""

    samples: Samples
    regions: Regions
    scores: Scores


@dataclass(frozen=True)
class TokenWeights:
    """What the reward says about a micro-batch, made once from its scores.

    map_Nhw: float32 weight of each token, None where the objective takes no reward. counts_N (bool): the images whose
    tokens count in the loss. partner_N (int64): for objectives that compare two images of a prompt, the other of
    the pair (itself where there is none); else None.
    """

    map_Nhw: Tensor | None
    counts_N: Tensor
    partner_N: Tensor | None = None


@dataclass(frozen=True)
class TrainView:
    """M training views of each of N images: what the generator sees of them, and what it should say.

    inputs: tensors [N, M, ...] that only the model's family knows. target: what a prediction is compared with,
    [N, M, T, C] or [N, M, T], and counts_NMT (bool) the tokens at which it is. time_NM: the time in [0, 1] of each
    view, for families that have one.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    counts_NMT: Tensor
    time_NM: Tensor | None = None
