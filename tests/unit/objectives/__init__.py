"""Tests of srum_ds/objectives."""
