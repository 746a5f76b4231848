"""What of a step was lost in drawing or judging, where no training loop tells it. The worker calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from srum_ds.common import ranks
from srum_ds.monitoring.judge_failures import refuse_broken_judge
from srum_ds.types import Judged


def tell_losses(
    step: int, batches: Sequence[Judged], max_failed_share: float, cure: str, tell: Callable[[str], None]
) -> None:
    """Counts over all ranks; all of them call it. tell: shows a line, on the first rank.

    Raises UserError, on every rank, where more of the images are not finite than ``judge.max_failed_share``: nothing of
    the step is written then.
    """
    own = [
        sum(batch.samples.sample_N.numel() for batch in batches),
        sum(int((~batch.samples.finite_N).sum()) for batch in batches),
        sum(int((~(batch.scores.global_N.isfinite() & batch.samples.finite_N)).sum()) for batch in batches),
    ]
    pictures, lost, masked = (sum(column) for column in zip(*ranks.run_on_all_ranks(lambda: own), strict=True))
    if masked and ranks.rank() == 0:
        tell(
            f"step {step}: {masked} of {pictures} images have no score, {lost} of them since they are not finite; "
            "nothing is learnt from them"
        )
    record = {"step": step, "pictures": pictures, "pictures_not_finite": lost, "parse_failed_share": 0.0}
    refuse_broken_judge(max_failed_share, cure, record, batches)
