"""Writes whole random detectors of a few ten thousand parameters as transformers opens them."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from torch import nn

CLASSES = ("dog", "cat", "mouse")
"""What the tiny Mask2Former was "trained" on, as COCO calls it."""

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *CLASSES, "red", "cup")


def write_owlv2(folder: Path) -> None:
    """An OWLv2 of 2 layers for pictures of 64 x 64."""
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    letters = {letter: number for number, letter in enumerate(ascii_lowercase)}
    ends = {f"{letter}</w>": 26 + number for letter, number in letters.items()}
    vocabulary = {**letters, **ends, "<|startoftext|>": 52, "<|endoftext|>": 53, "!": 54}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), pad_token="!", model_max_length=16
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 55, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 54}
    vision = {**sizes, "image_size": 64, "patch_size": 16}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    images = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    _save(Owlv2ForObjectDetection(config), folder)
    Owlv2Processor(images, tokenizer).save_pretrained(folder)


def write_grounding_dino(folder: Path) -> None:
    """A Grounding DINO of 1 encoder and 2 decoder layers, the fewest that its tied weights allow."""
    from transformers import BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoProcessor
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = BertTokenizer(vocab=words, model_max_length=32)
    backbone = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_indices": [2, 3, 4],
    }
    text = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    }
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_text_len=32,
        disable_custom_kernels=True,
    )
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    _save(GroundingDinoForObjectDetection(config), folder)
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def write_mask2former(folder: Path) -> None:
    """A Mask2Former with 1 layer of each kind, for the classes of ``CLASSES``."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    backbone = {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    images = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}, size_divisor=32)
    _save(Mask2FormerForUniversalSegmentation(config), folder)
    images.save_pretrained(folder)


def _save(model: Any, folder: Path) -> None:
    _spread(model)
    model.eval().save_pretrained(folder)


def _spread(model: nn.Module) -> None:
    """Weights of unit gain instead of the library's tiny ones, so that pictures and classes are told apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
