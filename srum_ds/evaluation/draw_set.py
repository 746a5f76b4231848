"""``srum-ds generate --prompts``: a whole set of prompts as a folder of pictures, drawn as an evaluation draws.

The folder is one of ``draw_folder``: all devices share the work, and the same command draws what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.common.texts import at_home
from srum_ds.evaluation.benchmarks import load_benchmark
from srum_ds.evaluation.benchmarks.own import in_category
from srum_ds.evaluation.draw_request import Drawing, DrawRequest, PromptChoice
from srum_ds.evaluation.layout_paths import NAMES
from srum_ds.evaluation.picture_layouts import COMPBENCH
from srum_ds.prompts.choose import choose_prompts
from srum_ds.prompts.own import is_url
from srum_ds.prompts.source import is_shards, read_source
from srum_ds.types import Prompt

OWN_BENCHMARK = "own"


@dataclass(frozen=True)
class PromptSet:
    """A set of prompts and how its pictures are named.

    source, column, split: see ``read_source``. limit: at most so many, of the categories in turn. layout: a key of
    ``layout_paths.NAMES``.
    """

    source: str
    column: str | None = None
    split: str | None = None
    limit: int | None = None
    layout: str = "plain"


def set_request(chosen: PromptSet, drawing: Drawing, samples: int, out: Path) -> DrawRequest:
    """The request that draws ``samples`` pictures of each prompt of a set into ``out``.

    Where the layout is a benchmark's and the source that benchmark's own file or checkout, the prompts keep the
    benchmark's records, and `srum-ds eval score` takes the folder as drawn for it. Raises UserError as ``read_source``
    does, for numbers below 1, and where the layout has no place for a picture.
    """
    if samples < 1:
        raise UserError(f"--samples {samples}: give at least 1.")
    if drawing.batch < 1:
        raise UserError(f"--batch {drawing.batch}: give at least 1.")
    benchmark = load_benchmark(_benchmark_of(chosen))
    path = Path(at_home(chosen.source))
    if benchmark.name == OWN_BENCHMARK:
        prompts = [in_category(prompt) for prompt in read_source(chosen.source, chosen.column, chosen.split)]
    else:
        prompts = benchmark.read(path)
    if NAMES[chosen.layout] == COMPBENCH:
        prompts = _each_text_once(prompts)
    request = DrawRequest(
        drawing,
        benchmark,
        PromptChoice(benchmark.name, path, chosen.limit),
        choose_prompts(prompts, chosen.limit),
        samples,
        out,
        NAMES[chosen.layout],
        index=True,
    )
    # Before a model is loaded.
    _ = request.places
    return request


def _benchmark_of(chosen: PromptSet) -> str:
    """Which benchmark's own file or checkout a source is, as its layout lets one expect; ``own`` if none's."""
    path = Path(at_home(chosen.source))
    if is_url(chosen.source) or is_shards(chosen.source) or not path.exists():
        return OWN_BENCHMARK
    data_set = path.is_dir() and ((path / "state.json").is_file() or any(path.glob("*.parquet")))
    if data_set:
        return OWN_BENCHMARK
    if chosen.layout == "geneval" and (path.is_dir() or path.name == "evaluation_metadata.jsonl"):
        return "geneval"
    if chosen.layout == "compbench" and (path.is_dir() or path.name.endswith("_comp.json")):
        return "compbench"
    if chosen.layout == "wise" and (path.is_dir() or path.suffix == ".json"):
        inside = path if path.is_file() else path / "data_verified"
        verified = inside.is_dir() or path.name == "data_verified" or path.stem.endswith("_verified")
        return "wise_verified" if verified else "wise"
    return OWN_BENCHMARK


def _each_text_once(prompts: Sequence[Prompt]) -> list[Prompt]:
    """T2I-CompBench's pictures are named by their text: prompts of one text share them."""
    return list({prompt.text: prompt for prompt in reversed(prompts)}.values())[::-1]
