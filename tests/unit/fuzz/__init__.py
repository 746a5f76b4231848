"""Tests of srum_ds by inputs that are nearly right (tests/fuzz)."""
