"""Which of a benchmark's prompts are meant: ``--categories`` and ``--limit`` of `srum-ds eval draw` and ``score``."""

from __future__ import annotations

from collections.abc import Sequence

from srum_ds.common.errors import UserError
from srum_ds.types import Prompt


def choose_prompts(
    prompts: Sequence[Prompt], limit: int | None = None, categories: Sequence[str] = ()
) -> tuple[Prompt, ...]:
    """The prompts of ``categories`` (none: all), at most ``limit`` of them, in their own order.

    The limit takes the first prompt of each category, then the second of each, and so on: benchmarks list one category
    after the other, and a small limit should see them all. A smaller limit's prompts are among a larger one's.

    Raises UserError for a category that no prompt has, and for a limit below 1.
    """
    known = list(dict.fromkeys(prompt.category for prompt in prompts))
    for name in categories:
        if name not in known:
            raise UserError(f"--categories {name}: no prompt is of that category; there are {', '.join(known)}")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give at least 1.")
    places = [i for i, prompt in enumerate(prompts) if not categories or prompt.category in categories]
    if limit is not None:
        seen: dict[str, int] = {}
        turns = []
        for i in places:
            turn = seen.get(prompts[i].category, 0)
            seen[prompts[i].category] = turn + 1
            turns.append((turn, i))
        places = sorted(i for _, i in sorted(turns)[:limit])
    return tuple(prompts[i] for i in places)
