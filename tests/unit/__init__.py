"""Tests of one room each, without a process started."""
