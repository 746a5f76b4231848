"""Janus as a module: the library's parts under the library's names, and the one pass that trains.

The VQ that turns codes into pixels is no part of it: nothing in it learns (``weights.JanusParts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from srum_ds.kernels.cross_entropy import linear_cross_entropy
from srum_ds.models.janus.language import KeysValues, run_layers

Ids = tuple[int, ...]


class CodeHead(nn.Module):
    """The last layer of the generation head, which can also say how likely given codes are.

    It does so in parts, without all logits at once (``linear_cross_entropy``). Its weight is read here alone, where an
    engine that shards it has gathered it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor, code: Tensor | None = None) -> Tensor:
        """Logits [..., V] of x [..., D]; with ``code`` (int64 [N]) -log p(code) of x [N, D], float32 at least."""
        if code is None:
            return F.linear(x, self.weight, self.bias)
        return linear_cross_entropy(x, self.weight, code, self.bias)


class Janus(nn.Module):
    """``JanusForConditionalGeneration`` without its VQ; parameters have the names that they have there."""

    def __init__(self, library: Any) -> None:
        """library: the library's model, which is taken apart."""
        super().__init__()
        self.model = library.model
        self.model.vqmodel = None
        head = self.model.generation_head
        head.vision_head = CodeHead(head.vision_head)
        self.lm_head = library.lm_head
        self.checkpointing = False

    @property
    def language(self) -> LlamaModel:
        """The stack of layers."""
        language: LlamaModel = self.model.language_model
        return language

    @property
    def device(self) -> torch.device:
        return self.language.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed_tokens.weight.dtype

    # ---- the pass that trains

    def forward(self, ids_BL: Tensor, length_B: Tensor, code_BT: Tensor) -> Tensor:
        """log p(code_t | prompt, codes before it), without guidance, at temperature 1: float32 [B, T].

        ids_BL: prompts up to the begin of their pictures (int64, CPU), padded on the right with any id. length_B: their
        lengths (CPU). code_BT: int64.
        """
        hidden_BTD = self._hidden(ids_BL, length_B, code_BT)
        head = self.model.generation_head
        feature_ND = head.activation_fn(head.proj_out(hidden_BTD)).flatten(0, 1)
        energy_N: Tensor = head.vision_head(feature_ND, code_BT.to(feature_ND.device).flatten())
        return -energy_N.view(code_BT.shape)

    def logits(self, ids_BL: Tensor, length_B: Tensor, code_BT: Tensor) -> Tensor:
        """All logits [B, T, V] of the same pass, before each of the codes."""
        logits_BTV: Tensor = self.model.generation_head(self._hidden(ids_BL, length_B, code_BT))
        return logits_BTV

    def _hidden(self, ids_BL: Tensor, length_B: Tensor, code_BT: Tensor) -> Tensor:
        """Normed hidden states [B, T, D] before each code: of the begin of the picture, then of all codes but one."""
        batch, tokens = code_BT.shape
        device = self.device
        longest = ids_BL.shape[1]
        prompt_BLD = self.language.embed_tokens(ids_BL.to(device))
        x_BSD = torch.cat([prompt_BLD, self.embed_codes(code_BT[:, :-1])], dim=1)
        place_S = torch.arange(x_BSD.shape[1])
        if bool((length_B == longest).all()):
            hidden_BSD = self._run(x_BSD, place_S)
            return hidden_BSD[:, longest - 1 :]
        # The codes stand directly behind their prompts, and padding behind them.
        length_B1 = length_B[:, None]
        behind_BS = place_S - length_B1 + longest
        source_BS = torch.where(place_S < length_B1, place_S, behind_BS.clamp(max=len(place_S) - 1))
        row_B1 = torch.arange(batch, device=device)[:, None]
        hidden_BSD = self._run(x_BSD[row_B1, source_BS.to(device)], place_S)
        before_BT = length_B1 - 1 + torch.arange(tokens)
        return hidden_BSD[row_B1, before_BT.to(device)]

    def _run(self, x_BSD: Tensor, place_S: Tensor) -> Tensor:
        return run_layers(self.language, x_BSD, place_S[None].to(x_BSD.device), checkpointing=self.checkpointing)

    def embed_codes(self, code: Tensor) -> Tensor:
        """Codes (int64 [...]) as the language model reads them: [..., D]."""
        embedded: Tensor = self.model.generation_aligner(self.model.generation_embeddings(code.to(self.device)))
        return embedded

    # ---- reading, without a gradient

    @torch.no_grad()
    def read_texts(self, texts: Sequence[Ids]) -> tuple[Tensor, KeysValues]:
        """Reads texts, at least one id each: normed hidden states [B, D] of their last tokens, and keys and values."""
        length_B = torch.tensor([len(ids) for ids in texts])
        ids_BS = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in texts], batch_first=True).to(self.device)
        kept = KeysValues()
        place_1S = torch.arange(ids_BS.shape[1], device=self.device)[None]
        hidden_BSD = run_layers(self.language, self.language.embed_tokens(ids_BS), place_1S, kept=kept)
        row_B = torch.arange(len(texts), device=self.device)
        return hidden_BSD[row_B, length_B.to(self.device) - 1], kept

    @torch.no_grad()
    def features(self, pixels_PCHW: Tensor) -> Tensor:
        """What the language model sees of pictures: [P, tokens, D], from the processor's pixel values."""
        pixels = pixels_PCHW.to(self.device, self.dtype)
        features_PTD: Tensor = self.model.get_image_features(pixels, return_dict=True).pooler_output
        return features_PTD
