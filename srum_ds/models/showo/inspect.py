"""What a checkpoint folder holds, from its configuration files alone: no weights, no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srum_ds.models import lora
from srum_ds.models.library import meta_module
from srum_ds.models.showo.config import read_config
from srum_ds.models.showo.magvit import Magvit
from srum_ds.models.showo.model import Showo
from srum_ds.models.showo.modes import lora_targets, trained
from srum_ds.models.showo.tokenizer import ShowoTokenizer


def inspect_folder(path: Path | str, lora_rank: int = lora.DEFAULT_RANK) -> dict[str, Any]:
    """Counts parameters of a Show-o folder, and says what it draws, from its configuration and tokenizer.

    Returns ``parameters`` (the picture tokenizer apart), ``parts`` (embeddings, blocks, head, picture_tokenizer),
    ``picture`` (pixels, codes and codebook), ``vocabulary`` and ``trainable`` (parameters by mode; ``lora``'s for its
    default targets at rank ``lora_rank``). UserError as ``read_config``.
    """
    config = read_config(Path(path))
    vocabulary = ShowoTokenizer(config).vocabulary
    module = meta_module(lambda: Showo(config.phi, vocabulary, config.facts.num_vq_tokens))
    magvit = meta_module(lambda: Magvit(config.magvit))
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    parts = {
        "embeddings": sum(count for name, count in counts.items() if "embed_tokens" in name),
        "head": sum(count for name, count in counts.items() if "lm_head" in name),
        "picture_tokenizer": sum(parameter.numel() for parameter in magvit.parameters()),
    }
    parts["blocks"] = sum(counts.values()) - parts["embeddings"] - parts["head"]
    trainable = {"transformer": sum(counts[name] for name in trained("transformer", counts))}
    trainable["lora"] = lora.adapter_size(module, lora_targets(module), lora_rank)
    return {
        "parameters": sum(counts.values()),
        "parts": parts,
        "picture": {
            "pixels": config.pixels,
            "codes": config.facts.num_vq_tokens,
            "codebook": config.facts.codebook_size,
            "prompt_tokens": config.facts.max_text_len,
        },
        "vocabulary": {
            "text": config.facts.llm_vocab_size,
            "first_code": vocabulary.first_code,
            "mask": vocabulary.mask,
            "size": config.facts.vocab_size,
        },
        "trainable": trainable,
    }


def inspection_text(facts: dict[str, Any]) -> str:
    """The facts of ``inspect_folder`` as a few aligned lines."""
    rows = [("parameters", facts["parameters"])]
    rows += [(f"  {part}", facts["parts"][part]) for part in ("embeddings", "blocks", "head")]
    rows.append(("picture tokenizer", facts["parts"]["picture_tokenizer"]))
    rows += [(f"picture: {name.replace('_', ' ')}", count) for name, count in facts["picture"].items()]
    rows += [(f"vocabulary: {name.replace('_', ' ')}", count) for name, count in facts["vocabulary"].items()]
    rows += [(f"trains in mode {mode}", count) for mode, count in facts["trainable"].items()]
    return "\n".join(f"{name:<28}{count:>18,}" for name, count in rows)
