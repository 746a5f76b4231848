"""Reports as one HTML file: of a scored folder (``write_report``), and of several runs (``write_comparison``)."""

from srum_ds.evaluation.report_html.comparison_page import Pair, Side, write_comparison
from srum_ds.evaluation.report_html.score_page import write_report

__all__ = ["Pair", "Side", "write_comparison", "write_report"]
