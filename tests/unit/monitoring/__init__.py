"""Tests of srum_ds/monitoring."""
