"""Tests of the loop: srum_ds/job.py and srum_ds/train.py."""
