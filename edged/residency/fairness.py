"""Turns of models that do not fit together. Pure; seconds on any one clock.

A model that was loaded has a turn. While it lasts, whoever asks for the model gets it, though others wait for theirs:
so every load serves more than one request where more come. When it is over and somebody waits, the model takes no
more requests, ends those it has, and makes room. So nobody waits longer than the turns before it, however many ask.
"""

from __future__ import annotations

import math

TURN_LOADS = 4.0  # a turn is so many times as long as the load before it: a fifth of the time at most goes to loads
TURN_S = (2.0, 60.0)  # the shortest: a few answers of a small model; the longest: half of a request's usual deadline
# After its last request a model is kept for a moment within its turn: an agent that has called a tool comes back at
# once, and swapping the models in between would cost two loads a step. No longer than half a load, which is what
# keeping it can save at least.
LINGER_S = 0.25
LINGER_LOADS = 0.5
USES_HALVE_S = 600.0  # twice the usual time after which an idle model goes: what was asked before tells little


def turn_ends(loaded_at: float, load_s: float) -> float:
    """Until when a model takes requests though others wait. load_s: its load took."""
    shortest, longest = TURN_S
    return loaded_at + min(max(TURN_LOADS * load_s, shortest), longest)


def kept_until(loaded_at: float, used_at: float, load_s: float) -> float:
    """Until when a model that nobody uses is not taken out for another."""
    return min(used_at + min(LINGER_S, LINGER_LOADS * load_s), turn_ends(loaded_at, load_s))


def decayed(uses: float, for_s: float) -> float:
    """Uses of a model, so much later."""
    return uses * math.exp2(-max(0.0, for_s) / USES_HALVE_S)
