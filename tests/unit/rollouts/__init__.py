"""Tests of srum_ds/rollouts."""
