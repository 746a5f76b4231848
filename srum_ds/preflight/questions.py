"""Looks at the judge's questions: whether each template is there, is Jinja, and uses what it will be given."""

from __future__ import annotations

from collections.abc import Iterator

from srum_ds.common.errors import UserError
from srum_ds.config import Config, externals_of
from srum_ds.config.choices import READOUTS
from srum_ds.preflight.findings import Finding, error, ok
from srum_ds.rewards.templates import load_template

GIVEN = {
    "judge.global_template": ("prompt", "think"),
    "judge.local_template": ("phrase", "prompt", "think"),
    "judge.local_template of boxes": ("boxes", "height", "prompt", "think", "width"),
    "judge.caption_template": ("think",),
    "regions.filter_template": ("phrase", "prompt"),
    "regions.phrases_template": ("prompt",),
    "regions.ground_template": ("phrases", "prompt"),
    "judge.external": ("prompt", "think"),
}
"""The variables that each question is given; docs/judging.md says what they hold."""
NEEDED = {
    "judge.global_template": "prompt",
    "judge.local_template": "phrase",
    "judge.local_template of boxes": "boxes",
    "judge.external": "prompt",
}
"""The variable without which every question would be the same."""


def look_at_questions(cfg: Config) -> Iterator[Finding]:
    """Every template that a run reads."""
    for part, name in _templates(cfg):
        found = list(_problems(part, name, needs=cfg.judge.readout in READOUTS.builtin))
        yield from found or [ok(part.split(" of ")[0], name)]


def _templates(cfg: Config) -> Iterator[tuple[str, str]]:
    """(the setting, its template) of each that is read with these settings."""
    judge, regions = cfg.judge, cfg.regions
    if judge.readout == "likelihood":
        if judge.caption_template is not None:
            yield "judge.caption_template", judge.caption_template
    else:
        yield "judge.global_template", judge.global_template
        yield "judge.local_template" + (" of boxes" if judge.regional == "boxes" else ""), judge.local_template
    if regions.kind != "none":
        if regions.phrases in ("auto", "ask"):
            yield "regions.phrases_template", regions.phrases_template
        if regions.filter:
            yield "regions.filter_template", regions.filter_template
        if regions.kind == "ground":
            yield "regions.ground_template", regions.ground_template
    for external in externals_of(judge, cfg.reads_environment("judge.external")):
        if external.kind == "http" and external.template:
            yield "judge.external", external.template


def _problems(part: str, name: str, needs: bool) -> Iterator[Finding]:
    """needs: whether the question must mention what it is about; a readout of the user's own may do without."""
    setting = part.split(" of ")[0]
    try:
        template = load_template(name)
    except UserError as problem:
        yield error(setting, f"{setting}={name}: {problem}.")
        return
    strange = sorted(template.variables - set(GIVEN[part]))
    if strange:
        yield error(
            setting,
            f"{setting}={name}: the template uses {', '.join(strange)}, which it is not given; it may use "
            f"{', '.join(GIVEN[part])}.",
        )
    needed = NEEDED.get(part)
    if needs and needed is not None and needed not in template.variables:
        yield error(
            setting,
            f"{setting}={name}: the template never mentions {{{{ {needed} }}}}: every question would be the same; use "
            "the variable, or choose another template.",
        )
