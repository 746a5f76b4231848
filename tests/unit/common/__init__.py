"""Tests of srum_ds/common."""
