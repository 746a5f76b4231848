"""From the sampler's options of `srum-ds generate` to the sampling settings of a design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.models.protocol import ModelFamily

SETTING_OF_OPTION = {
    "--steps": "num_timesteps",
    "--guidance": "text_scale",
    "--image-guidance": "image_scale",
    "--interval": "interval",
    "--renorm": "renorm",
    "--renorm-min": "renorm_min",
    "--shift": "timestep_shift",
}
"""The setting that each option sets in samplers that integrate a flow."""

OTHERWISE = {"--steps": "steps", "--guidance": "guidance"}
"""What designs that draw codes call it."""


def sampling_settings(
    family: ModelFamily,
    options: Mapping[str, Any],
    further: Sequence[str],
    editing: bool,
    trained: Mapping[str, Any] | None = None,
) -> Any:
    """Settings of the family's ``sampling_type``: its defaults, the model's own, those for editing, then what is given.

    options: values of ``SETTING_OF_OPTION``, None for an option that was not given. further: the KEY=VALUE of
    `--sampler`. editing: whether an image is edited. trained: what the model's folder says (``generation.json``).

    Raises UserError, naming the option, for a setting that the design does not have and for a value out of its range.
    """
    from srum_ds.models import make_sampling

    given = {option: value for option, value in options.items() if value is not None}
    if given.get("--steps", 1) < 1:
        raise UserError("--steps must be at least 1. Correct it and repeat the command.")
    _check_known(family, given)
    names = {option: _setting(family, option) for option in given}
    settings = {names[option]: _value(names[option], value) for option, value in given.items()}
    for key, value in map(_parse, further):
        if key in settings:
            raise UserError(f"--sampler {key} is given twice, or an option beside it says the same: give one of them.")
        settings[key] = value
    usual = dict(trained or {})
    if editing:
        usual |= family.edit_sampling or {}
    try:
        return make_sampling(family, usual | settings, "--sampler {}")
    except UserError as error:
        blamed = [option for option in given if not _stands_alone(family, names[option], settings)]
        if not blamed:
            raise
        raise UserError(f"{blamed[0]}: {error}. Correct it and repeat the command.") from error


def _setting(family: ModelFamily, option: str) -> str:
    """What the design calls the setting of an option."""
    known = {field.name for field in fields(family.sampling_type)}
    usual = SETTING_OF_OPTION[option]
    return OTHERWISE[option] if usual not in known and OTHERWISE.get(option) in known else usual


def _value(setting: str, value: Any) -> Any:
    # There is one time point more than there are steps between them.
    return value + 1 if setting == "num_timesteps" else value


def _check_known(family: ModelFamily, given: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(family.sampling_type)]
    for option in given:
        if _setting(family, option) not in known:
            raise UserError(
                f"{option} sets {SETTING_OF_OPTION[option]}, which the sampler of {family.kind} does not have. It has "
                f"{', '.join(known)}: give those as --sampler KEY=VALUE."
            )


def _stands_alone(family: ModelFamily, setting: str, settings: Mapping[str, Any]) -> bool:
    """Whether the value of one setting is allowed beside the defaults of all others."""
    try:
        family.sampling_type(**{setting: settings[setting]})
    except UserError:
        return False
    return True


def _parse(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--sampler {word!r} is not of the form KEY=VALUE.")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--sampler {word!r}: the value is not valid YAML.") from error
