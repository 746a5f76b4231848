"""Tests, and the conformance command."""
