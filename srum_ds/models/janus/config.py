"""The configuration of a Janus checkpoint folder, checked: a wrong value is one line that names file and key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig
from transformers.activations import ACT2FN

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json

_PARTS: dict[str, Callable[..., Any]] = {
    "text_config": LlamaConfig,
    "vision_config": JanusVisionConfig,
    "vq_config": JanusVQVAEConfig,
}

_WHOLE = {
    "text_config": (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ),
    "vision_config": (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "projection_dim",
        "num_image_tokens",
        "depth",
    ),
    "vq_config": (
        "embed_dim",
        "num_embeddings",
        "latent_channels",
        "base_channels",
        "num_res_blocks",
        "projection_dim",
        "image_token_embed_dim",
        "num_hidden_layers",
    ),
}
"""Whole numbers above 0, as the library's classes know them."""

MAY_BE_NONE = ("num_res_blocks",)
"""Of them, those that may be 0: the decoder has one block more at every size."""

GROUPS = 32
"""Groups of the VQ's group norms, which the library fixes."""


@dataclass(frozen=True)
class JanusSettings:
    """What a folder's configuration says.

    library: the library's ``JanusConfig``. system_prompt: whether questions stand behind the release's system prompt.
    eos: ids that end an answer, empty where the tokenizer's eos alone does. stated: ids of ``texts.SpecialIds`` that
    generation_config.json states, which the library draws by.
    """

    library: Any
    system_prompt: bool = True
    eos: tuple[int, ...] = ()
    stated: Mapping[str, int] = field(default_factory=dict)

    @property
    def per_side(self) -> int:
        """Codes along a side of a picture."""
        return int(self.library.vision_config.image_size) // int(self.library.vision_config.patch_size)

    @property
    def tokens(self) -> int:
        """Codes of a picture, and tokens that the vision tower makes of one."""
        return self.per_side**2

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return int(self.library.vq_config.num_embeddings)

    @property
    def side(self) -> int:
        """Pixels along a side of a drawn picture."""
        levels = len(self.library.vq_config.channel_multiplier)
        return self.per_side * int(2 ** (levels - 1))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes (rows, columns) of a picture in pixels; UserError for any size but the one that the model draws."""
        if (height, width) != (self.side, self.side):
            raise UserError(
                f"{height} x {width} pixels cannot be drawn: this model draws {self.side} x {self.side} pixels alone. "
                "Ask for that size."
            )
        return self.per_side, self.per_side

    @property
    def longest(self) -> int:
        """Most tokens of a sequence."""
        return int(self.library.text_config.max_position_embeddings)


def read_config(folder: Path) -> JanusSettings:
    """Reads a checkpoint folder's configuration; no weights are needed.

    Raises UserError naming the file when one is missing, broken or of another architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give the path of a Janus checkpoint folder.")
    path = folder / "config.json"
    values = _read_json(path)
    if values.get("model_type") != "janus":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, expected 'janus': not a Janus folder.")
    parts = {name: _part(name, values, path) for name in _PARTS}
    rest = {name: value for name, value in values.items() if name not in _PARTS}
    library = _built(lambda: JanusConfig(**rest, **parts), path)
    _check_consistency(library, path)
    settings = _processed(JanusSettings(library), folder)
    return settings


def _part(name: str, values: Mapping[str, Any], path: Path) -> Any:
    part = values.get(name) or {}
    if not isinstance(part, dict):
        raise UserError(f"{path}: {name} is {part!r}, expected an object. Put the release's value there.")
    kind = part.get("model_type", "llama")
    if name == "text_config" and kind != "llama":
        raise UserError(
            f"{path}: text_config.model_type is {kind!r}, expected 'llama': other language models are not run."
        )
    for key in _WHOLE[name]:
        value = part.get(key)
        least = 0 if key in MAY_BE_NONE else 1
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(
                f"{path}: {name}.{key} is {value!r}, expected a whole number from {least}. Put the release's value "
                "there."
            )
    return _built(lambda: _PARTS[name](**part), path, f"{name}: ")


def _built(build: Callable[[], Any], path: Path, where: str = "") -> Any:
    try:
        return build()
    except Exception as error:
        # The library raises whatever its checks do, over several lines.
        raise UserError(f"{path}: {where}{' '.join(str(error).split())} Put the release's value there.") from error


def _check_consistency(config: Any, path: Path) -> None:
    """What no single value shows: widths that must be equal, divisibility, activations. UserError."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    width = text.hidden_size
    for name, value in (
        ("vision_config.projection_dim", vision.projection_dim),
        ("vq_config.projection_dim", vq.projection_dim),
        ("vq_config.image_token_embed_dim", vq.image_token_embed_dim),
    ):
        if value != width:
            raise UserError(f"{path}: {name} is {value}, but text_config.hidden_size is {width}. Correct one of them.")
    if text.head_dim % 2:
        raise UserError(
            f"{path}: text_config.head_dim {text.head_dim} is odd; rotary positions need halves. Correct it."
        )
    _divides("text_config", text, "num_attention_heads", "num_key_value_heads", path)
    _divides("vision_config", vision, "hidden_size", "num_attention_heads", path)
    _divides("vision_config", vision, "image_size", "patch_size", path)
    tokens = (vision.image_size // vision.patch_size) ** 2
    if vision.num_image_tokens != tokens:
        raise UserError(
            f"{path}: vision_config.num_image_tokens is {vision.num_image_tokens}, but image_size and patch_size make "
            f"{tokens}. Correct one of them."
        )
    multipliers = list(vq.channel_multiplier)
    if not multipliers or any(isinstance(m, bool) or not isinstance(m, int) or m < 1 for m in multipliers):
        raise UserError(f"{path}: vq_config.channel_multiplier is {multipliers}, expected whole numbers above 0.")
    if vq.base_channels % GROUPS:
        raise UserError(
            f"{path}: vq_config.base_channels {vq.base_channels} is not a multiple of {GROUPS}, as its norms need. "
            "Correct it."
        )
    for name, value in (
        ("text_config.hidden_act", text.hidden_act),
        ("vision_config.hidden_act", vision.hidden_act),
        ("vq_config.hidden_act", vq.hidden_act),
    ):
        if value not in ACT2FN:
            raise UserError(f"{path}: {name} {value!r} is unknown. Expected one of {', '.join(sorted(ACT2FN))}.")
    if not 0 <= config.image_token_id < text.vocab_size:
        raise UserError(
            f"{path}: image_token_id is {config.image_token_id}, but text_config.vocab_size is {text.vocab_size}. "
            "Correct one of them."
        )


def _divides(part: str, values: Any, whole: str, by: str, path: Path) -> None:
    if getattr(values, whole) % getattr(values, by):
        raise UserError(
            f"{path}: {part}.{whole} {getattr(values, whole)} is not a multiple of {by} ({getattr(values, by)}). "
            "Correct one of them."
        )


def _processed(settings: JanusSettings, folder: Path) -> JanusSettings:
    """The same with what the processor's and the generation's files say."""
    path = folder / "processor_config.json"
    values = _read_json(path) if path.exists() else {}
    count = values.get("num_image_tokens", settings.tokens)
    if count != settings.tokens:
        raise UserError(
            f"{path}: num_image_tokens is {count!r}, but config.json's vision_config makes {settings.tokens} "
            "tokens of a picture. Correct one of them."
        )
    system = values.get("use_default_system_prompt", False)
    if not isinstance(system, bool):
        raise UserError(f"{path}: use_default_system_prompt is {system!r}, expected true or false.")
    path = folder / "generation_config.json"
    said = _read_json(path) if path.exists() else {}
    eos = said.get("eos_token_id")
    ends = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if any(isinstance(end, bool) or not isinstance(end, int) for end in ends):
        raise UserError(f"{path}: eos_token_id is {eos!r}, expected a token's id or a list of them.")
    more = said.get("generation_kwargs")
    start = more.get("boi_token_id") if isinstance(more, dict) else None
    stated = {"bos": said.get("bos_token_id"), "pad": said.get("pad_token_id"), "image_start": start}
    known = {name: value for name, value in stated.items() if value is not None}
    return JanusSettings(settings.library, system, tuple(ends), known)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it from the release into this folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy it again.")
    return values
