"""Random numbers that are a pure function of (random_state, step, flat index within the sample), in standard integer operators.

The generator is a keyed permutation of the numbers below p = 2^29 - 3: rounds of x -> (x + key + constant)^3 mod p, a bijection
because 3 does not divide p - 1 (the MiMC construction: Albrecht et al. 2016). Every product stays below 2^62, so the numbers are
the same wherever int64 arithmetic is exact, at every batch size and position, in every run.
"""

import numpy as np

from graphattr.rule import Graph, Value

P = 2**29 - 3
CONSTANTS = (0x243F6A88 % P, 0x85A308D3 % P, 0x13198A2E % P)  # digits of pi


def uniform(g: Graph, counter: Value, key: Value) -> Value:
    """Integers in [0, p), one per entry of `counter` (int64, below p)."""
    x = counter
    for constant in CONSTANTS:
        x = cube(g, x + (key + constant))
    return x


def cube(g: Graph, x: Value) -> Value:
    """x^3 mod p, for x below 4 p."""
    return g.Mod(g.Mod(x * x, P) * x, P)


def key_of(g: Graph, step: Value, random_state: int, stream: int = 0) -> Value:
    """One key per (random_state, step, stream)."""
    start = (random_state * 0x9E3779B1 + stream * 0x7F4A7C15) % P
    return cube(g, cube(g, step + start) + CONSTANTS[0])


def open_unit(g: Graph, x: Value) -> Value:
    """Integers below p as float32 in (0, 1]."""
    return (g.Cast(x, to=1) + 0.5) * (1.0 / P)


def normal(g: Graph, x: Value, step: Value, random_state: int, stream: int = 0) -> Value:
    """Standard normal numbers of the shape of one sample of x, (1, *x.shape[1:]), by Box and Muller; `step`: an int64 scalar."""
    shape = g.Concat([1], g.emit("Shape", x, start=1), axis=0) if x.rank > 1 else g.const([1])
    count = g.ReduceProd(shape, keepdims=0)
    pairs = g.Div(count + 1, 2)
    first = uniform(g, g.Range(0, pairs, 1), key_of(g, step, random_state, stream))
    second = cube(g, first + CONSTANTS[0])
    radius = g.Sqrt(g.Log(open_unit(g, first)) * -2.0)
    angle = open_unit(g, second) * (2 * np.pi)
    both = g.Concat(radius * g.Cos(angle), radius * g.Sin(angle), axis=0)
    drawn = g.Slice(both, [0], g.Unsqueeze(count, [0]))
    made = g.emit("Reshape", drawn, shape, out_shape=(1, *(x.shape or ())[1:]))
    return made if made.dtype == x.dtype else g.CastLike(made, x)
