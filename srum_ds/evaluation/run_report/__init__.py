"""A run as one HTML file, a line of a list, and beside others; all from what stands in its folder alone."""

from srum_ds.evaluation.run_report.page import write_run_report

__all__ = ["write_run_report"]
