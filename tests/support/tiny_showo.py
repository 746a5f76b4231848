"""Writes whole random Show-o folders of a few ten thousand parameters, in the released layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from srum_ds.models.showo.adapter import load_showo
from srum_ds.models.showo.config import SPECIAL_TOKENS, MagvitConfig
from srum_ds.models.showo.layout import AROUND, drawing_mask
from srum_ds.models.showo.magvit import Magvit

END = "<|endoftext|>"
MERGES = (("Ġ", "a"), ("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d"), ("Ġ", "y"), ("Ġy", "e"), ("Ġ", "n"), ("Ġn", "o"))

TINY_MAGVIT: dict[str, Any] = {
    "ch": 32,
    "encoder_ch_mult": [1, 2],
    "decoder_ch_mult": [1, 1],
    "encoder_num_res_blocks": [1, 2],
    "decoder_num_res_blocks": [2, 1],
    "z_channels": 5,
    "codebook_dim": 5,
}
"""Codes of five bits, each for 2 x 2 pixels; block counts and widths differ by level and half, as released."""

TINY_PHI: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}


def write_tiny_showo(
    folder: Path, seed: int = 0, side: int = 4, llm_model_path: str = "llm", phi: dict[str, Any] | None = None
) -> Path:
    """Writes a complete folder with random weights and returns it; the same seed gives the same bytes.

    side: codes in a row and in a column. llm_model_path: where the language model's configuration and tokenizer go, and
    what config.json says of it. phi: what that configuration has otherwise than ``TINY_PHI``.
    """
    folder = Path(folder)
    llm_folder = folder / llm_model_path
    for inside in (folder, llm_folder, folder / "magvitv2"):
        inside.mkdir(parents=True, exist_ok=True)
    text_size = write_tokenizer(llm_folder)
    config = PhiConfig(**{**TINY_PHI, **(phi or {}), "vocab_size": text_size + 3})
    values = config.to_dict() | {"architectures": ["PhiForCausalLM"]}
    (llm_folder / "config.json").write_text(json.dumps(values, indent=1))
    codebook = 2 ** TINY_MAGVIT["z_channels"]
    facts = {
        "_class_name": "Showo",
        "codebook_size": codebook,
        "llm_model_path": llm_model_path,
        "llm_vocab_size": text_size,
        "mask_token_id": text_size + SPECIAL_TOKENS + codebook,
        "max_text_len": 44,
        "num_vq_tokens": side**2,
        "vocab_size": text_size + SPECIAL_TOKENS + codebook + 1,
        "w_clip_vit": False,
    }
    (folder / "config.json").write_text(json.dumps(facts, indent=1))
    config.vocab_size = facts["vocab_size"]
    config.qk_layernorm = True
    model = PhiForCausalLM(config)
    _randomise(model, seed)
    # Pictures differ only where their codes' embeddings outweigh what every one has in common.
    model.lm_head.weight.data.mul_(3.0)
    model.model.embed_tokens.weight.data.mul_(4.0)
    stored = {f"showo.{name}": p.detach().clone().contiguous() for name, p in model.named_parameters()}
    save_file(stored, folder / "pytorch_model.safetensors")
    write_magvit(folder / "magvitv2", seed + 1)
    return folder


def write_magvit(folder: Path, seed: int) -> None:
    """The picture tokenizer's configuration and weights, the quantiser's tables among them as in the release."""
    (folder / "config.json").write_text(json.dumps({"_class_name": "MAGVITv2", **TINY_MAGVIT}, indent=1))
    bits = TINY_MAGVIT["z_channels"]
    known = {name: value for name, value in TINY_MAGVIT.items() if name != "codebook_dim"}
    sizes: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}
    magvit = Magvit(MagvitConfig(**sizes))
    _randomise(magvit, seed)
    stored = {name: p.detach().clone().contiguous() for name, p in magvit.named_parameters()}
    stored["quantize.power_vals"] = 2 ** torch.arange(bits - 1, -1, -1)
    stored["quantize.embedding"] = torch.zeros(2**bits, bits)
    save_file(stored, folder / "pytorch_model.safetensors")


def library_model(folder: Path) -> PhiForCausalLM:
    """The language model of a folder in transformers' own class: the file's keys without their prefix, strictly."""
    facts = json.loads((folder / "config.json").read_text())
    config = PhiConfig.from_pretrained(str(folder / facts["llm_model_path"]))
    config.vocab_size = facts["vocab_size"]
    config.qk_layernorm = True
    model = PhiForCausalLM(config)
    stored = load_file(folder / "pytorch_model.safetensors")
    model.load_state_dict({key.removeprefix("showo."): tensor.float() for key, tensor in stored.items()}, strict=True)
    return model.eval()


@torch.no_grad()
def showo_redraws(folder: Path) -> float:
    """How far the logits of transformers' class lie from the adapter's on masked pictures, relative to the largest."""
    model = load_showo(folder)
    codes_NT = torch.arange(2 * model.module.codes).view(2, -1) % model.token_spec.size
    ids_BL = model.generator.sequence_ids(["a red circle", ""], torch.where(codes_NT % 3 == 0, codes_NT, -1))
    seen_BLL = drawing_mask(ids_BL == model.module.vocabulary.pad, model.module.codes + AROUND)
    theirs = library_model(folder)(input_ids=ids_BL, attention_mask=seen_BLL[:, None], use_cache=False).logits
    ours = model.module.picture_logits(ids_BL)
    theirs = theirs[:, -ours.shape[1] :]
    return float((theirs - ours).abs().max() / theirs.abs().max())


def write_tokenizer(folder: Path) -> int:
    """A byte-level BPE with a few merges and one special token; returns how many ids it has."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    inner = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, list(MERGES)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END, special=True)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=END, eos_token=END, unk_token=END)
    wrapped.save_pretrained(str(folder))
    return len(tokens) + 1


def _randomise(module: nn.Module, seed: int) -> None:
    """Random weights that let every part be felt: norms about 1, biases not 0, matrices of unit gain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(start + 0.1 * normal(parameter))
            else:
                parameter.copy_(normal(parameter) / parameter[0].numel() ** 0.5)
