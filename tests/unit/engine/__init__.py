"""Tests of srum_ds/engine."""
