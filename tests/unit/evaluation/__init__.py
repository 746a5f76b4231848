"""Tests of srum_ds/evaluation."""
