"""Tests of srum_ds/prompts."""
