"""Tests of srum_ds/worlds."""
