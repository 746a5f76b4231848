"""From images to token weights. Nothing here trains, and of a model only the judge is seen.

Read in this order: ``phrases`` (which objects a prompt asks for), ``regions`` (which boxes are judged), ``templates``
(the questions), ``judge`` (asking, and reading the answers), ``scores`` (log-probabilities to scores), ``painting``
(boxes onto the token grid), ``token_weights`` (what the reward says about every token).
"""
