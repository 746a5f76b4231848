"""What `srum-ds rescore` may be given: nothing heavy is imported here."""

from __future__ import annotations

RESCORABLE = ("judge", "regions", "reward", "log", "limits", "deepspeed", "model.path", "rollout.micro_batch_prompts")
"""Sections and settings that ``rescore`` may be given."""
KEPT = "rescoring keeps the images as they were drawn; `srum-ds rollout` draws others."
