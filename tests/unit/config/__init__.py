"""Tests of srum_ds/config."""
