"""Fused kernels in Triton, each with the name and the parameters of its reference in ``srum_ds/kernels``.

Inputs and outputs are float32 or bfloat16, everything between is float32 and is rounded once. No kernel uses atomics:
sums over rows are added up within a program and then by torch, in the same order on every run.

Every number among a kernel's parameters is cast to float32 first: ``torch.compile`` may pass Python's floats as
float64, to which the arithmetic would be widened.

Only ``srum_ds/kernels/selfcheck.py`` imports this, and only where Triton is wanted. Its interpreter, under which the
tests run them, bounds the style: no ``tl.dot`` of bfloat16, loops with constant bounds, few large tiles.
"""
