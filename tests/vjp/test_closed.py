"""The derivatives form a closed set: what they emit can be differentiated again."""

from __future__ import annotations

import importlib
import pathlib

import pytest

from graphattr.infer import schema_of
from graphattr.vjp import CONSTANT, VJPS
from graphattr.vjp.registry import CONTROL
from tests.vjp.checking import Case, check, emitted

Traced = list[tuple[Case, int, set[str], set[str]]]  # (case, opset, operators of the case, operators its derivatives emit)
MODULES = [p.stem for p in sorted(pathlib.Path(__file__).parent.glob("test_*.py")) if p.stem != "test_closed"]


def cases() -> list[Case]:
    return [c for m in MODULES for c in getattr(importlib.import_module(f"tests.vjp.{m}"), "CASES", [])]


@pytest.fixture(scope="module")
def traced() -> Traced:
    return [(c, opset, *emitted(c, opset)) for c in cases() for opset in c.opsets]


def test_every_emitted_operator_has_a_derivative_or_is_said_to_have_none(traced: Traced) -> None:
    def known(op: str, opset: int) -> bool:
        schema = schema_of(op, "", opset)
        body = schema and (schema.has_function or schema.has_context_dependent_function)
        return op in {*VJPS, *CONSTANT, *CONTROL} or bool(body)
    open_ends = {op: c.name for c, opset, _, ops in traced for op in ops if not known(op, opset)}
    assert not open_ends


def test_every_derivative_is_checked_to_second_order(traced: Traced) -> None:
    straight_through = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}  # no derivative of values; checked exactly
    checked = {op for c, _, ops, _ in traced if c.order > 1 for op in ops}
    assert {*VJPS, *CONTROL} - checked - straight_through == set()


@pytest.mark.parametrize(("op", "order"), [("Sin", "first"), ("Cos", "second")])
def test_a_wrong_derivative_is_noticed(op: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = VJPS[op]
    monkeypatch.setitem(VJPS, op, lambda g, n, dy: [1.01 * dx for dx in right(g, n, dy)])
    with pytest.raises(AssertionError, match=f"{order} order"):
        check(lambda g, x: g.Sin(x), [0.3, -1.2, 0.8])


def test_no_operator_is_both_constant_and_differentiable() -> None:
    assert not CONSTANT & set(VJPS)


def test_constant_operators_exist() -> None:
    assert not {op for op in CONSTANT if schema_of(op, "", 26) is None}
