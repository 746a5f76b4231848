"""Fuzzing: inputs that are nearly right, made from a seed, and what must hold of whatever reads them.

``inputs`` makes them, ``target`` says what a target is, the ``of_*`` modules hold the targets, ``campaign`` hands them
many inputs, ``growth`` times them at two lengths. ``tests/unit/fuzz`` runs each on a few inputs by hypothesis,
``python -m tests.fuzz`` on a million by seed.
"""
