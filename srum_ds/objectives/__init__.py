"""Objectives: ``losses`` holds each as a pure function, ``registry`` says what one is, ``apply`` runs it on a batch."""

from srum_ds.objectives.registry import Objective, Terms, get_objective

__all__ = ["Objective", "Terms", "get_objective"]
