"""Writing 64 tokens with layers of full width: milliseconds a token, where SDPA may take cuDNN's kernel and not.

cuDNN's kernel makes a plan for every new shape (srum_ds/models/bagel/attention.py says what follows from that), so
the first writing and a later one are timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.nn.attention import SDPBackend

from srum_ds.models.bagel import attention
from tests.gpu.check.measuring import Figures, Where
from tests.gpu.check.random_model import PROMPT, RandomModel, open_random

LAYERS = 4
TOKENS = 64


def run(figures: Figures, where: Where) -> None:
    made = open_random(LAYERS, where)
    kernels, _ = where.working_kernels()
    figures["layers"] = made.config.llm.num_hidden_layers
    figures["tokens"] = TOKENS
    with where.fused({} if where.rehearse else kernels):
        for batch in (1, 16):
            for name, cudnn in ("not_allowed", False), ("allowed", True):
                with cudnn_allowed(cudnn):
                    first = written(made, batch, where)
                    again = written(made, batch, where)
                figures[f"batch_{batch}_cudnn_{name}"] = {"first": first, "again": again}
        for name, cudnn in ("not_allowed", False), ("allowed", True):
            with cudnn_allowed(cudnn):
                profiled = where.profiled(lambda: written(made, 1, where, 4))
            figures[f"attention_kernels_cudnn_{name}"] = profiled["attention_kernels"]


@contextmanager
def cudnn_allowed(allowed: bool) -> Iterator[None]:
    """Inside, attention may take cuDNN's kernel, which the code leaves out; or not, as the code has it."""
    backends = [*attention.BACKENDS, SDPBackend.CUDNN_ATTENTION] if allowed else attention.BACKENDS
    with patch.object(attention, "BACKENDS", backends):
        yield


def written(made: RandomModel, batch: int, where: Where, tokens: int = TOKENS) -> dict[str, Any]:
    """Milliseconds of a token behind a text of a few hundred, and of that text's reading."""
    reader, decoder = made.model.reader, made.model.generator.decoder
    text = " ".join([PROMPT] * where.scaled(20, 2))
    ids = reader.text_ids(text, "the text")
    where.synchronize()
    begin = time.perf_counter()
    logits, cache = decoder.start(made.module.read_text([ids] * batch))
    where.synchronize()
    read = time.perf_counter()
    # Ends by the number of tokens: the logits that are kept have all of them.
    found, _ = decoder.decode(logits, cache, tokens, keep_logits=True)
    done = time.perf_counter()
    return {
        "context": len(ids),
        "read_ms": round((read - begin) * 1e3, 2),
        "ms_a_token": round((done - read) * 1e3 / found.shape[1], 3),
    }
