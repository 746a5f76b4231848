"""Tests of srum_ds/models."""
