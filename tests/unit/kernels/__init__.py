"""Tests of srum_ds/kernels."""
