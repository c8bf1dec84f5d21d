"""The mutation guard: where a rule, a seed or a finish is replaced by the gradient's, a comparison with the oracles must fail."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random

import numpy as np
import pytest

from tests.rules import methods, zoo
from tests.rules.test_methods import TOLERANCE, box

pytest.importorskip("onnxruntime")
from graphattr.method import load_method
from graphattr.rule import REGISTRY, load_rules
from tests.rules import engine

load_rules()
NETS = ("faint", "shared", "tokens", "residual", "gated", "scaled", "ratio")
SETTINGS = [(m, {}) for m in methods.METHODS] + [
    ("lrp.epsilon", {"mul": "gate"}), ("lrp.epsilon", {"bn": "pass"}), ("rectgrad", {"times_input": True})]
NEUTRAL = {"seeds": "onehot", "finishes": "raw"}
HARMLESS = {
    "rules": {"gradient": "it is the gradient"},
    "seeds": {"onehot": "it is the gradient's"},
    "finishes": {"raw": "it is the gradient's"},
}


@functools.cache
def expected(name, method, params):
    c = zoo.case(name)
    return methods.explain(c.net, method, c.target, **box(method), **dict(params))["x"]


def agrees(name, method, params):
    c = zoo.case(name)
    want = expected(name, method, tuple(params.items()))
    got = engine.attribute(c.model, c.x, c.target, method, **box(method), **params)["x"]
    return bool(np.abs(got - want).max() <= TOLERANCE * np.abs(want).max() + 1e-12)


@contextlib.contextmanager
def mutated(table, names):
    """The entries of a registry table act like the gradient's; yields the set of those that were used."""
    held, used = dict(getattr(REGISTRY, table)), set()

    def wrong(name):
        neutral = REGISTRY.rules["gradient"].apply if table == "rules" else held[NEUTRAL[table]].apply

        def apply(*args, **params):
            used.add(name)
            passes = len(held[name].apply(*args)) if table == "seeds" else 1
            return neutral(*args) if passes == 1 else neutral(*args) * passes
        return dataclasses.replace(held[name], apply=apply)

    getattr(REGISTRY, table).update({name: wrong(name) for name in names})
    try:
        yield used
    finally:
        getattr(REGISTRY, table).update(held)


@pytest.mark.parametrize("method", [m for m in methods.METHODS if not m.startswith("gradient")])
def test_every_method_is_more_than_the_gradient(method):
    with mutated("rules", REGISTRY.rules):
        assert not all(agrees(name, method, {}) for name in NETS)


def exercised():
    """Per table its entries that any setting uses on any of the nets, each with the settings that do."""
    found = {table: {} for table in HARMLESS}
    for method, params in SETTINGS:
        chosen = load_method(method).with_params(box(method) | params)
        for name in NETS:
            made = engine.graphattr.convert(zoo.case(name).model, method=method, target="input", **box(method), **params).manifest
            used = {("rules", layer["rule"]) for layer in made["layers"][method]}
            for table, entry in (*sorted(used), ("seeds", chosen.seed), ("finishes", chosen.finish)):
                found[table].setdefault(entry, []).append((name, method, params))
    return found


def test_every_entry_of_the_registry_is_watched():
    """One entry at a time becomes the gradient's: some comparison notices."""
    for table, entries in exercised().items():
        for entry, uses in entries.items():
            if entry in HARMLESS[table]:
                continue
            random.Random(0).shuffle(uses)
            with mutated(table, [entry]) as used:
                assert not all(agrees(*use) for use in uses), f"{entry} can become the gradient's and nothing notices"
                assert used == {entry}
