"""The generator of random numbers: what it computes, in whole Python numbers, and that its output looks like noise."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
import onnxruntime as ort
from graphattr_rules import noise

from graphattr.graph import Graph
from graphattr.onnxio import write_model

P = 2**29 - 3
PI = [0x243F6A88 % P, 0x85A308D3 % P, 0x13198A2E % P]


def session(shape, random_state=0, stream=0, dtype=np.float32):
    """(x, step) -> the noise of one step."""
    g = Graph(17)
    x, step = g.input("x", dtype, shape), g.input("step", np.int64, ())
    g.outputs.append(("noise", noise.normal(g, x, step, random_state, stream)))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(write_model(g).SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.cache
def drawn(step=0, n=100_001, random_state=0, stream=0):
    x = np.zeros((1, n), np.float32)
    return session(("N", "F"), random_state, stream).run(None, {"x": x, "step": np.array(step, np.int64)})[0][0].astype(float)


def test_the_numbers_are_those_of_the_definition():
    """Box and Muller on x -> (x + key + constant)^3 mod p, the key itself made of two cubes."""
    for step, state, stream, n in ((0, 0, 0, 7), (3, 12345, 1, 8), (49, -5, 2, 1)):
        start = (state * 0x9E3779B1 + stream * 0x7F4A7C15) % P
        key, pairs, found = pow(pow(step + start, 3, P) + PI[0], 3, P), (n + 1) // 2, []
        for i in range(pairs):
            v = i
            for c in PI:
                v = pow(v + key + c, 3, P)
            radius = math.sqrt(-2 * math.log((v + 0.5) / P))
            angle = 2 * math.pi * (pow(v + PI[0], 3, P) + 0.5) / P
            found.append((radius * math.cos(angle), radius * math.sin(angle)))
        want = np.array(found).T.ravel()[:n]
        np.testing.assert_allclose(drawn(step, n, state, stream), want, atol=3e-5)


def test_one_noise_for_every_batch():
    for shape in (("N", 3, 5), (None, "C", "L"), (4, 3, 5)):
        made = session(shape)
        x = np.zeros((4, 3, 5), np.float32)
        got = made.run(None, {"x": x, "step": np.array(2, np.int64)})[0]
        assert got.shape == (1, 3, 5)
        assert np.array_equal(got, made.run(None, {"x": x, "step": np.array(2, np.int64)})[0])
        np.testing.assert_array_equal(got.ravel(), drawn(2, 15).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_get_the_same_numbers(dtype):
    x = np.zeros((1, 999), dtype)
    got = session(("N", 999), dtype=dtype).run(None, {"x": x, "step": np.array(0, np.int64)})[0]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got[0], drawn(0, 999).astype(np.float32).astype(dtype))


# -- statistics: each bound is about 5 standard errors ------------------------------------------------------------
def problems(v, others=()):
    """What a sample of standard normal numbers, and its relation to others, should not show."""
    n, found = len(v), []

    def expect(what, got, want, error):
        if abs(got - want) > 5 * error:
            found.append(f"{what}: {got:.5f}, not {want:.5f} +- {error:.5f}")

    for k, want, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        expect(f"moment {k}", (v**k).mean(), want, math.sqrt(variance / n))
    for z in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3):
        p = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        expect(f"share below {z}", (v < z).mean(), p, math.sqrt(p * (1 - p) / n))
    for lag in (1, 2, 3, 7, 16, 224, n // 2, n // 2 + 1):
        for what, w in (("values", v), ("squares", v**2 - 1), ("sizes", np.abs(v) - math.sqrt(2 / math.pi))):
            pair = w[lag:] * w[:-lag]
            expect(f"correlation of {what} at lag {lag}", pair.mean(), 0, pair.std() / math.sqrt(len(pair)))
    for i, other in enumerate(others):
        for what, pair in (("values", v * other), ("squares", (v**2 - 1) * (other**2 - 1))):
            expect(f"correlation of {what} with sample {i}", pair.mean(), 0, pair.std() / math.sqrt(n))
    return found


@pytest.mark.parametrize("state", [0, 1, 2, 1234567])
@pytest.mark.parametrize("step", [0, 1, 49])
def test_statistics(step, state):
    """Of one sample, and its relation to the next steps, to other streams and to other random states."""
    others = [drawn(step + 1, random_state=state), drawn(step + 2, random_state=state), drawn(step, random_state=state, stream=1),
              drawn(step, random_state=state + 1), drawn(step + 1, random_state=state + 1, stream=1)]
    assert problems(drawn(step, random_state=state), others) == []


def test_each_place_has_noise_over_the_steps():
    made = session(("N", 50))
    x = np.zeros((1, 50), np.float32)
    table = np.array([made.run(None, {"x": x, "step": np.array(i, np.int64)})[0][0] for i in range(4000)]).astype(float)
    assert [p for column in table.T for p in problems(column[:, None].ravel())] == []


def test_no_number_comes_twice():
    """Rounds are a permutation: counters that differ give numbers that do."""
    g = Graph(17)
    i = g.input("i", np.int64, ("n",))
    g.outputs.append(("u", noise.uniform(g, i, g.const(99))))
    run = ort.InferenceSession(write_model(g).SerializeToString(), providers=["CPUExecutionProvider"]).run
    u = run(None, {"i": np.arange(300_000)})[0]
    assert len(set(u.tolist())) == len(u)
    assert 0 <= u.min() <= u.max() < P
    last = functools.reduce(lambda v, c: pow(v + 99 + c, 3, P), PI, P - 1)
    assert run(None, {"i": np.array([P - 1])})[0].tolist() == [last]


def test_the_statistics_notice_poor_generators(monkeypatch):
    """Without rounds, with one key for all steps, or of another width."""
    good, following = drawn(0), drawn(1)
    assert problems(good, [good])
    assert problems(good, [0.05 * good + following])
    assert problems(1.02 * good)
    assert problems(good + 0.02)
    assert problems(np.sort(good))
    assert problems(np.clip(good, -2.9, 2.9))
    monkeypatch.setattr(noise, "uniform", lambda g, counter, key: g.Mod(counter * 7919 + key, P))
    drawn.cache_clear()
    assert problems(drawn(0), [drawn(1)])
    drawn.cache_clear()
