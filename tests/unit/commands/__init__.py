"""Tests of srum_ds/commands."""
