"""All targets by name."""

from __future__ import annotations

from tests.fuzz import of_pictures, of_prompts, of_replies, of_runs, of_settings
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (of_replies, of_settings, of_prompts, of_pictures, of_runs)
    for target in module.TARGETS
}
