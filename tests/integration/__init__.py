"""Tests that start commands, and ranks under the launcher; the workers that they start stand beside them."""
