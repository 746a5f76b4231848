"""Experiment trackers: ``log.trackers`` names who gets a run's figures beside metrics.jsonl and TensorBoard."""

from srum_ds.monitoring.trackers.fan_out import Trackers, open_trackers
from srum_ds.monitoring.trackers.protocol import Tracker, TrackerRun

__all__ = ["Tracker", "TrackerRun", "Trackers", "open_trackers"]
