"""Tests of srum_ds/rewards."""
