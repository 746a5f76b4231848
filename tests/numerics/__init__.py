"""Tests of numbers: recorded losses, recorded official outputs, and one revision against another."""
