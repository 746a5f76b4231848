"""Detectors find objects of named classes in pictures; benchmarks grade what they find. See ``protocol``."""

from srum_ds.evaluation.detectors.files import RecordedDetections, read_detections, write_detections
from srum_ds.evaluation.detectors.protocol import Detector, load_detector

__all__ = ["Detector", "RecordedDetections", "load_detector", "read_detections", "write_detections"]
