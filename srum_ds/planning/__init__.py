"""What a run takes before it is started, and what its work amounts to while it runs: bytes, FLOPs, seconds.

``plan.make_plan`` predicts for ``srum-ds plan``; ``accounting.Accounting`` counts in every run. Both take a design's
own arithmetic from its ``ModelCosts`` and everything that is assumed from ``assumptions``.
"""
