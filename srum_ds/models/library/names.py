"""What a library calls a stored tensor: files of transformers may use other names than the module has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from srum_ds.common.errors import UserError


def library_names(model: Any) -> Callable[[str], str]:
    """From a key of a checkpoint file to the parameter's name in a ``transformers.PreTrainedModel``.

    It is the library's own mapping (``transformers.conversion_mapping``), which ``from_pretrained`` applies; the
    released files of Qwen2.5-VL, for one, say ``visual.*`` for the module's ``model.visual.*``. A tensor that the
    library would not only rename but compute (such as experts that are stored one by one) is a UserError.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [rule for rule in transforms if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in transforms if not isinstance(rule, WeightRenaming)]
    names = dict(model.state_dict(keep_vars=True))
    prefix = model.base_model_prefix

    def to_module(key: str) -> str:
        name, converted = rename_source_key(key, renamings, converters, prefix, names)  # type: ignore[arg-type]
        if converted is not None:
            raise UserError(
                f"{type(model).__name__} stores {key} otherwise than it holds it, so that it cannot be read by its "
                f"name: load it with the library and save it again ({name} is what it becomes)."
            )
        return str(name)

    return to_module
