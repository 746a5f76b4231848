"""The judge: what it is asked (``judge``) and how it is read (``readouts``, ``parsing``).

Who else is asked stands in ``external``, where it lives in ``host``, and all of it as a recipe has it in ``pipeline``.
"""
