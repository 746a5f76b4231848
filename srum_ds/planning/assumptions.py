"""Everything that a plan assumes and no formula gives, in one place.

Where it says H100, it was measured on one, with BAGEL's shapes and random weights (benchmarks/gpu.json). Whoever
measures another one puts the figure here, with its source; docs/planning.md lists them.
"""

from __future__ import annotations

# ---- what fits

SPARE = 0.05
"""Share of a GPU's memory that a plan leaves free: what the allocator cannot use, and what no formula has."""

GPU_OVERHEAD_BYTES = 3_000_000_000
"""CUDA's context, NCCL's buffers, the libraries' workspaces."""

GATHER_AT_ONCE = 1 << 28
"""Elements of one all-gather; its buffer and the parameters both exist for a moment (``engine.gathering``)."""

GPU_ADAM_TEMPORARIES = 0
"""Arrays of a sub-group's size beside its gradient in AdamW's step: none where it is fused."""

CPU_ADAM_TEMPORARIES = 2
"""torch's AdamW on a CPU: the root of the second moment, and its quotient."""

# ---- what a step does

PROMPT = "a red book and a yellow vase standing on a round wooden table next to the window"
"""Length of a prompt, about that of T2I-CompBench's."""

PHRASES = ("a red book", "a yellow vase")
"""Object phrases that each region is asked about."""

THOUGHT_TOKENS = 1000
"""Tokens of a written reply that thinks first; a batch ends with its longest."""

REPLY_TOKENS = 64
"""Tokens of any other written reply."""

# ---- how fast

EFFICIENCY = {"rollout": 0.5, "judge": 0.4, "train": 0.5}
"""Share of a GPU's peak that a phase's products and attention reach.

An H100 at 1024 px: 0.53 in guided steps of 28 layers with one image, 0.55 with two; 0.51 in training passes of four
layers, with and without blocks run again. The judge's was not measured.
"""

DECODE_STEP_SECONDS = 0.025
"""Least time of one decoded token of a batch: kernels of a model this deep are launched one by one.

An H100: 3.2 to 4.1 ms with four layers, so 22 to 29 ms with 28 of them.
"""

BANDWIDTH_SHARE = 0.75
"""Share of the memory's bandwidth that reading weights and stepping the optimizer reach.

An H100: 0.78 in torch's fused AdamW, 0.90 in a copy.
"""

LINK_SHARE = 0.9
"""Share of a network's rate that collectives reach."""

IN_WORDS = (
    "copies of the weights exist only where something reads them; reference is kept in the compute dtype",
    "a noised image attends without a mask; on a GPU the autoencoder computes in bf16",
    "AdamW is fused; the text head does not train; gradients are reduced in fp32",
    f"regions: regions.max_count of each image, each asked about {len(PHRASES)} phrases; prompts of "
    f"{len(PROMPT.split())} words",
    f"written replies have {THOUGHT_TOKENS} tokens where they think, {REPLY_TOKENS} else",
    "share of the peak: " + ", ".join(f"{phase} {share:.0%}" for phase, share in EFFICIENCY.items()),
)
"""What a plan's reader should know, a line each."""
