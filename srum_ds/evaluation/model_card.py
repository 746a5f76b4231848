"""The README.md of an exported model: what it is, how it was trained, what was measured, how to draw with it.

It is a model card in the form that the Hugging Face hub reads. Between its two marks stands what was measured, which an
evaluation writes anew; whatever else a person changes in it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from srum_ds import __version__
from srum_ds.common.files import file_bytes
from srum_ds.config import Config
from srum_ds.config.external import externals_of, own_share
from srum_ds.config.relations import objective_uses_reward

CARD = "README.md"
GALLERY = "gallery.png"
# What a run's folder keeps of its evaluations, as their modules write it; a run's start need not import them.
RESULT, GRID = "result.json", Path("samples/eval_grid.png")
EVALUATIONS, BASE, TRAINED = "eval", "base", "trained"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
UNKNOWN = "unknown"
"""What the hub calls a licence that nobody has said."""
EXAMPLE = "a red circle above a blue square"
EXAMPLE_FILE = "a-red-circle-above-a-blue-square-seed0-0.png"

_DESIGNS = {
    "bagel": "BAGEL",
    "blip3o": "BLIP3-o",
    "janus": "Janus",
    "showo": "Show-o",
    "vlm_dit": "vision-language model with a diffusion transformer (Qwen-Image's design)",
}
_ANSWERS = {
    "generation": "Only the generation half was trained: what the model says about images is what its base says.",
    "lora": "A LoRA adapter was trained; it is merged into these weights, and stands alone in `lora/`.",
}
_OTHER_ANSWERS = "Its understanding was trained too: what it says about images may differ from its base."
_WEIGHTS = {"ema": "their moving average", "live": "the last ones", "old": "the average that drew the rollouts"}
_LIMITS = """\
- {rewarded}
- {answers}
- Outside of the prompts that it was trained and measured on, nothing is known of it.
- Nothing was measured about bias, safety or copies of training pictures; the limits of its base are its own too.
"""


def card_text(cfg: Config, kind: str, step: int, weights: str, measured: str) -> str:
    """The whole card of a run's export.

    kind: the design. step: steps taken. weights: ``ema``, ``live`` or ``old``. measured: what stands between the marks.
    """
    licence = licence_of(Path(cfg.model.path))
    base = public_name(str(cfg.written("model.path")))
    name = Path(cfg.run.dir).resolve().name
    said = f"Its base says `{licence}`." if licence else "Its base's folder says nothing of a licence: ask its authors."
    answers = _ANSWERS.get(cfg.model.trains, _OTHER_ANSWERS)
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(_metadata(cfg, kind, licence), sort_keys=False, allow_unicode=True).strip()}\n---\n",
            f"# {name}\n",
            f"A {_DESIGNS.get(kind, kind)} model {_taught(cfg)}. Made with srum-ds {__version__} from `{base}`; the "
            "files have the layout that its design's own code reads.\n",
            "## Measured\n",
            f"{BEGIN}\n{measured.strip()}\n{END}\n",
            "## Drawing with it\n",
            _drawing(cfg),
            "## How it was trained\n",
            _table(_recipe(cfg, base, step, weights)) + "\n",
            "## Limits\n",
            _LIMITS.format(rewarded=_rewarded(cfg), answers=answers),
            "## Licence\n",
            f"{said} srum-ds is under Apache-2.0, which covers its code and not these weights.\n",
        ]
    )


def _taught(cfg: Config) -> str:
    """How it was trained, in a sentence that is true of who judged."""
    method = "(SRUM, [arXiv 2510.12784](https://arxiv.org/abs/2510.12784))"
    if not objective_uses_reward(cfg):
        return f"that was trained on images of its own, without a reward: what {method} is compared with"
    outside, own = _judges(cfg)
    scores = "the scores of whole images" + (" and of regions" if _regions_count(cfg) else "")
    if not own:
        return (
            f"that was trained on images of its own: {outside} judge(s) outside of it judged them, and {scores} "
            f"weighed the loss of its generator (the weighing is SRUM's, {method[7:]}"
        )
    others = f" and {outside} further judge(s)" if outside else ""
    return (
        f"that taught itself to draw: its understanding{others} judged its own images, and {scores} weighed the loss "
        f"of its generator {method}"
    )


def _rewarded(cfg: Config) -> str:
    if not objective_uses_reward(cfg):
        return "No reward told good images from bad ones: it was trained on what it drew."
    outside, own = _judges(cfg)
    others = f", beside {outside} further judge(s)" if outside else ""
    who, that = (
        (f"its own understanding half{others}", "What that half does not see")
        if own
        else (f"{outside} judge(s) outside of it", "What these do not see")
    )
    return (
        f"It was rewarded by {who}. {that} was not corrected, and may have\n"
        "  been learnt: look at pictures before you trust a reward."
    )


def _judges(cfg: Config) -> tuple[int, bool]:
    """How many judges there were beside the model, and whether it was asked itself."""
    externals = externals_of(cfg.judge)
    return len(externals), own_share(externals) > 0


def _regions_count(cfg: Config) -> bool:
    """Whether scores of regions were in the reward: somebody judged them, and they have a weight."""
    externals = externals_of(cfg.judge)
    judged = own_share(externals) > 0 or any(judge.judges_regions for judge in externals)
    return judged and cfg.reward.local_weight > 0


def _drawing(cfg: Config) -> str:
    if ":" in cfg.model.kind:
        return (
            f"Its design is code of its makers, which they named `model.kind={public_name(cfg.model.kind)}`: "
            "`srum_ds.models.load_model(FOLDER, kind)` opens this folder where that code is, and the commands of "
            "srum-ds that go by the folder alone do not. `generation.json` has the sampler's settings that it is "
            "evaluated with.\n"
        )
    return (
        f'```\nsrum-ds generate --model . --prompt "{EXAMPLE}" --out images\n'
        f'srum-ds ask --model . --image images/{EXAMPLE_FILE} --question "is there a red circle?"\n```\n\n'
        "in this folder, with srum-ds installed; elsewhere with its path for the full stop. `generation.json` has "
        "the sampler's settings that it is evaluated with: `srum-ds generate` begins from them, and other programs "
        "should set the same.\n"
    )


def with_measured(text: str, measured: str) -> str | None:
    """A card with other figures between its marks; None where it has no marks, as one that a person wrote."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return None
    return f"{before}{BEGIN}\n{measured.strip()}\n{END}{after}"


def licence_of(folder: Path) -> str | None:
    """The licence that a model's own card names, None where it has none or names none."""
    try:
        text = file_bytes(folder / CARD).decode("utf-8")
        opening, _, rest = text.partition("---\n")
        found = yaml.safe_load(rest.partition("\n---")[0]) if not opening.strip() and rest else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) and licence.strip() and licence != UNKNOWN else None


def public_name(path: str) -> str:
    """A path as a stranger may read it: of an absolute one the last folder, which says nothing of a machine."""
    return Path(path).name if path.startswith(("/", "~")) else path


def _metadata(cfg: Config, kind: str, licence: str | None) -> dict[str, Any]:
    rewarded_itself = objective_uses_reward(cfg) and _judges(cfg)[1]
    return {
        "license": licence or UNKNOWN,
        "library_name": "srum-ds",
        "pipeline_tag": "text-to-image",
        "tags": ["srum", *(["self-rewarding"] if rewarded_itself else []), "unified-multimodal", kind],
    }


def _recipe(cfg: Config, base: str, step: int, weights: str) -> Mapping[str, Any]:
    rollout, judge = cfg.rollout, cfg.judge
    regions = f"regions x {cfg.reward.local_weight:g} ({cfg.regions.kind})" if _regions_count(cfg) else "no regions"
    reward = f"global x {cfg.reward.global_weight:g}, {regions}" if objective_uses_reward(cfg) else "none"
    outside, own = _judges(cfg)
    judges = [f"itself, by {judge.readout}"] if own else []
    judges += [f"{outside} outside of it"] if outside else []
    constraint = cfg.objective.constraint
    held = "not held" if constraint == "none" else f"held by {constraint} x {cfg.objective.constraint_weight:g}"
    prompts = cfg.written("data.shards") if cfg.data.prompts is None else cfg.data.prompts
    return {
        "base": base,
        "trained": cfg.model.trains,
        "prompts": f"{public_name(str(prompts))}, split {cfg.data.split}",
        "steps": f"{step} of {rollout.prompts_per_step} prompts x {rollout.images_per_prompt} images",
        "objective": f"{cfg.objective.name}, {held}",
        "reward": reward,
        "judge": "; ".join(judges),
        "learning rate": f"{cfg.train.lr:g}, {cfg.train.schedule}, {cfg.train.precision}",
        "weights": _WEIGHTS.get(weights, weights),
        "image size": "x".join(map(str, rollout.image_size)),
        "seed": cfg.run.seed,
    }


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
