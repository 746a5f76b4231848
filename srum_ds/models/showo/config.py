"""What a Show-o checkpoint folder says of its model: config.json, the language model's and the picture tokenizer's.

The released config.json holds no sizes of the language model: ``llm_model_path`` names the folder of its configuration
and text tokenizer. Its picture tokenizer, MAGVITv2, is a release of its own and stands in ``magvitv2/``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from transformers import PhiConfig

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json

SPECIAL_TOKENS = 10
"""Ids between the text tokenizer's and the codes: padding and nine others."""

MAGVIT_FOLDER = "magvitv2"
WEIGHTS = ("pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors")
"""Names that a file of weights may have, here and in ``magvitv2``; export writes the first."""

Count = Annotated[int, Field(gt=0)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Checked = TypeVar("Checked")


@dataclass(frozen=True)
class ShowoFacts:
    """The keys of config.json; the defaults are the released model of 256 x 256 pixels.

    vocab_size: text, special tokens, codes and the mask, in this order. max_text_len: tokens of a prompt and what wraps
    it, its task token apart (``max_seq_length`` of the released run configurations, which no config.json holds).
    """

    vocab_size: Count
    llm_vocab_size: Count
    llm_model_path: str
    codebook_size: Count = 8192
    num_vq_tokens: Count = 256
    mask_token_id: Count | None = None
    max_text_len: Annotated[int, Field(ge=3)] = 128
    w_clip_vit: bool = False


@dataclass(frozen=True)
class MagvitConfig:
    """MAGVITv2's sizes; the defaults are the released ones. Lists go from the level of full resolution down.

    ``ch_mult`` of a file is meant for both halves where it does not say ``encoder_ch_mult`` and ``decoder_ch_mult``.
    """

    ch: Annotated[int, Field(gt=0, multiple_of=32)] = 128
    encoder_ch_mult: Counts = (1, 2, 2, 4, 4)
    decoder_ch_mult: Counts = (1, 1, 2, 2, 4)
    encoder_num_res_blocks: Counts = (4, 3, 4, 3, 4)
    decoder_num_res_blocks: Counts = (4, 4, 3, 4, 3)
    z_channels: Annotated[int, Field(gt=0, le=30)] = 13

    @property
    def downsample(self) -> int:
        """Side in pixels of the square that one code stands for."""
        return 1 << (len(self.encoder_ch_mult) - 1)


@dataclass(frozen=True)
class ShowoConfig:
    """One Show-o model. phi: of transformers, with this model's vocabulary and normed queries and keys."""

    facts: ShowoFacts
    phi: PhiConfig
    magvit: MagvitConfig
    llm_folder: Path

    @property
    def first_code(self) -> int:
        """The id of code 0."""
        return self.facts.llm_vocab_size + SPECIAL_TOKENS

    @property
    def mask_id(self) -> int:
        """The id that stands where a code is not known yet: the last one."""
        return self.facts.vocab_size - 1

    @property
    def side(self) -> int:
        """Codes in a row and in a column of a picture."""
        return isqrt(self.facts.num_vq_tokens)

    @property
    def pixels(self) -> int:
        """Side of a picture, the only one that it draws and sees."""
        return self.side * self.magvit.downsample


def read_config(folder: Path, max_text_len: int | None = None) -> ShowoConfig:
    """Reads and checks the three configurations of a folder.

    max_text_len: instead of config.json's. UserError, naming the file and the key, for one that is missing or wrong.
    """
    folder = Path(folder)
    where = folder / "config.json"
    values = read_json(where)
    if max_text_len is not None:
        values["max_text_len"] = max_text_len
    facts = _checked(ShowoFacts, values, where)
    _check_vocabulary(facts, where)
    llm_folder = find_llm(folder, facts.llm_model_path)
    magvit = _read_magvit(folder / MAGVIT_FOLDER)
    if 2**magvit.z_channels != facts.codebook_size:
        raise UserError(
            f"{where}: codebook_size is {facts.codebook_size}, but codes of {magvit.z_channels} bits "
            f"({MAGVIT_FOLDER}/config.json) are {2**magvit.z_channels}. The two do not belong together."
        )
    return ShowoConfig(facts, _read_phi(llm_folder, facts.vocab_size), magvit, llm_folder)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where there is none."""
    try:
        values = parse_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it from the release into this folder.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; copy it again.")
    return values


def _checked(cls: type[Checked], values: dict[str, Any], where: Path) -> Checked:
    """The keys of ``values`` that the dataclass ``cls`` knows and that are not null, checked by type and range."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    given = {name: value for name, value in values.items() if name in known and value is not None}
    try:
        return TypeAdapter(cls).validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = "is not there" if first["type"] == "missing" else f"is {first['input']!r}: {first['msg']}"
        raise UserError(f"{where}: {key} {found}. Put the release's value there.") from None


def _check_vocabulary(facts: ShowoFacts, where: Path) -> None:
    expected = facts.llm_vocab_size + SPECIAL_TOKENS + facts.codebook_size + 1
    if facts.vocab_size != expected:
        raise UserError(
            f"{where}: vocab_size is {facts.vocab_size}, but llm_vocab_size {facts.llm_vocab_size}, {SPECIAL_TOKENS} "
            f"special tokens, codebook_size {facts.codebook_size} and the mask make {expected}."
        )
    if facts.mask_token_id not in (None, facts.vocab_size - 1):
        raise UserError(
            f"{where}: mask_token_id is {facts.mask_token_id}, expected the last id {facts.vocab_size - 1}."
        )
    if isqrt(facts.num_vq_tokens) ** 2 != facts.num_vq_tokens:
        raise UserError(f"{where}: num_vq_tokens is {facts.num_vq_tokens}, expected a square: pictures are square.")
    if facts.w_clip_vit:
        raise UserError(
            f"{where}: w_clip_vit is true: this Show-o sees pictures through a CLIP tower, which is not supported. "
            "Take the release that sees them as codes (showlab/show-o, showlab/show-o-512x512)."
        )


def find_llm(folder: Path, llm_model_path: str) -> Path:
    """The folder that ``llm_model_path`` names, absolute or in the checkpoint's; UserError where it is not there."""
    given = Path(llm_model_path)
    # An absolute path stands for itself when it is joined to another.
    path = Path(folder) / given
    if not path.is_dir():
        hub = not given.is_absolute() and len(given.parts) == 2
        what = f"the model {llm_model_path} of the Hugging Face hub" if hub else "the language model"
        raise UserError(
            f"{folder / 'config.json'}: llm_model_path is {llm_model_path!r}, and {path} is not there. Download the "
            f"configuration and tokenizer of {what} into that folder (config.json, tokenizer_config.json, "
            "tokenizer.json, vocab.json, merges.txt, special_tokens_map.json, added_tokens.json, as far as it has "
            "them; no weights), or write into llm_model_path which folder holds them."
        )
    return path


def _read_phi(llm_folder: Path, vocab_size: int) -> PhiConfig:
    where = llm_folder / "config.json"
    kind = read_json(where).get("model_type")
    if kind != "phi":
        raise UserError(f"{where}: model_type is {kind!r}, expected 'phi': Show-o's language model.")
    try:
        phi = PhiConfig.from_pretrained(str(llm_folder), local_files_only=True)
    except Exception as error:
        # The library raises whatever its checks do.
        raise UserError(f"{where} cannot be read ({error}); copy it from the release.") from error
    if phi.hidden_size % phi.num_attention_heads:
        raise UserError(
            f"{where}: hidden_size {phi.hidden_size} is no multiple of num_attention_heads {phi.num_attention_heads}."
        )
    phi.vocab_size = vocab_size
    # Show-o's own class sets it, whatever the file says; the file of phi-1_5 says false.
    phi.qk_layernorm = True
    # The same pass must give the same numbers again: what is old and what is new is compared.
    phi.attention_dropout = phi.resid_pdrop = phi.embd_pdrop = 0.0
    # Nothing is padded by an id of the language model's.
    phi.pad_token_id = None
    return phi


def _read_magvit(folder: Path) -> MagvitConfig:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing: Show-o's picture tokenizer. Download config.json and the weights of "
            "showlab/magvitv2 from the Hugging Face hub into that folder."
        )
    where = folder / "config.json"
    values = read_json(where) if where.exists() else {}
    for half in ("encoder", "decoder"):
        values.setdefault(f"{half}_ch_mult", values.get("ch_mult"))
    config = _checked(MagvitConfig, values, where)
    bits = values.get("codebook_dim") or config.z_channels
    if bits != config.z_channels:
        raise UserError(
            f"{where}: codebook_dim is {bits}, but z_channels {config.z_channels}: a bit is a channel's sign."
        )
    levels = {
        name: len(getattr(config, name))
        for name in ("encoder_ch_mult", "decoder_ch_mult", "encoder_num_res_blocks", "decoder_num_res_blocks")
    }
    if len(set(levels.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in levels.items())
        raise UserError(f"{where}: {told} levels, expected as many everywhere.")
    return config
