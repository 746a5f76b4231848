"""Fused operations, each beside its plain reference: the same numbers, fewer passes over memory."""
