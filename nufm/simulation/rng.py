"""One random stream per event, for compiled code.

xoshiro256** (D. Blackman, S. Vigna, ACM Trans. Math. Softw. 47 (2021) 36) on a (4,) uint64 state that the
caller owns: what an event looks like depends on its seed only, never on the thread, the process or the
events before it.
"""

from __future__ import annotations

import math

import numpy as np

from nufm.simulation.compiled import compiled

_11, _7, _45, _17, _5, _9 = (np.uint64(k) for k in (11, 7, 45, 17, 5, 9))
_64 = np.uint64(64)


def seed_state(seed: int) -> np.ndarray:
    """uint64 (4,) start state of the stream number ``seed`` (any integer >= 0)."""
    return np.random.SeedSequence(seed).generate_state(4, np.uint64)


@compiled
def uniform(state):
    """One number in the open interval (0, 1)."""
    x = state[1] * _5
    result = ((x << _7) | (x >> (_64 - _7))) * _9
    t = state[1] << _17
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= t
    x = state[3]
    state[3] = (x << _45) | (x >> (_64 - _45))
    return (float(result >> _11) + 0.5) * 1.1102230246251565e-16


@compiled
def exponential(state):
    """Mean 1."""
    return -math.log(uniform(state))


@compiled
def gauss(state):
    """Standard normal (Box-Muller, one of the pair)."""
    return math.sqrt(-2.0 * math.log(uniform(state))) * math.cos(2.0 * math.pi * uniform(state))


@compiled
def poisson(state, mean):
    """Poisson count by multiplication; for means up to some tens."""
    limit = math.exp(-mean)
    product = uniform(state)
    n = 0
    while product > limit:
        product *= uniform(state)
        n += 1
    return n
