"""Tests on the emulated accelerator (tests/support/emulated)."""
