"""From images to token weights: regions, judging, readouts, reward maps, diagnostics.

Read in this order: ``phrases`` (what for), ``regions`` (where to look), ``templates`` (what to ask), ``judge``
(about what), ``asking`` (how), ``readouts`` and ``parsing`` (what was said), ``reward_map`` (what it is worth,
token by token), ``diagnostics``.
"""
