"""Tests of srum_ds/planning."""
