"""What users may import: sorted, documented, and the same in Python, in the catalogues and on the command line."""

from __future__ import annotations

import argparse
import inspect
import types

import graphattr_rules
import pytest

import graphattr
from graphattr import cli, errors, rule
from graphattr.vjp import CONSTANT, CONTROL, VJPS

PYTHON_TWINS = {"convert", "explain", "inspect", "verify", "methods", "rules", "operators"}
CONTRACT = {"convert", "explain", "inspect", "methods", "rules", "operators", "verify", "Explainer", "GraphattrError"}


def public(module):
    return [(n, getattr(module, n)) for n in module.__all__]


def test_all_is_sorted_and_complete():
    assert graphattr.__all__ == sorted(graphattr.__all__)
    assert len(set(graphattr.__all__)) == len(graphattr.__all__)
    assert set(graphattr.__all__) >= CONTRACT
    mine = {n for n, v in vars(graphattr).items() if not n.startswith("_") and not isinstance(v, types.ModuleType)}
    assert mine <= set(graphattr.__all__), "imported into graphattr, but not in __all__"


def test_version_is_the_one_of_the_package():
    from importlib import metadata
    assert graphattr.__version__ == metadata.version("graphattr")


@pytest.mark.parametrize("name", [n for n in graphattr.__all__ if callable(getattr(graphattr, n))])
def test_public_things_say_what_they_do(name):
    thing = getattr(graphattr, name)
    if inspect.isclass(thing) and issubclass(thing, Exception):
        assert name in (errors.__doc__ or ""), "the exception tree lists it"
        return
    text = inspect.getdoc(thing) or ""
    assert len(text) > 30
    assert not text.startswith(f"{name}(")
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member} has no docstring"


def test_rule_interface_is_documented():
    for name, value in public(rule):
        if inspect.isfunction(value):
            assert inspect.getdoc(value), name
    assert len(set(rule.__all__)) == len(rule.__all__)


def test_errors_are_one_tree():
    found = {n: v for n, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == errors.__name__}
    assert all(issubclass(v, (errors.GraphattrError, Warning)) for v in found.values())
    assert set(found) <= set(graphattr.__all__)
    assert all(n in (errors.__doc__ or "") for n in found)


def commands():
    parser = cli.build_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def test_every_command_has_its_python_twin():
    for name in commands():
        assert callable(getattr(graphattr, name, None)) or name in ("demo",), name
    assert set(commands()) >= PYTHON_TWINS


def test_every_option_is_explained():
    for name, parser in commands().items():
        for action in parser._actions:
            if action.option_strings and action.option_strings != ["-h", "--help"]:
                assert action.help, f"{name} {action.option_strings[0]} has no help"


def test_options_of_convert_are_parameters_of_convert():
    known = set(inspect.signature(graphattr.convert).parameters)
    options = {a.dest for a in commands()["convert"]._actions} - {"help", "json", "debug", "out", "stop_after", "set"}
    renamed = {"no_strip": "strip", "no_strict": "strict", "lower": "lowering"}
    assert {renamed.get(o, o) for o in options} <= known


def test_catalogues_agree_with_the_registries():
    methods = graphattr.methods()
    assert [m["name"] for m in methods] == sorted(m["name"] for m in methods)
    assert all(m["summary"] and m["source"] for m in methods), "each method says what it is and where it is from"
    rules = graphattr.rules()
    assert [r["name"] for r in rules] == sorted(r["name"] for r in rules)
    assert all(len(r["summary"]) > 5 and r["kinds"] and r["origin"] for r in rules)
    assert {r["name"] for r in rules} == set(rule.REGISTRY.rules)
    status = {o["name"]: o["derivative"] for o in graphattr.operators()}
    assert {n for n, s in status.items() if s == "derivative"} == {n for n in (*VJPS, *CONTROL) if n in status}
    assert {n for n, s in status.items() if s == "zero"} == {n for n in CONSTANT if n in status}
    assert set(status.values()) == {"derivative", "zero", "body", "rewritten", "none"}
    assert status["LSTM"] == status["com.microsoft:FusedConv"] == "rewritten"


def test_every_operator_without_a_derivative_says_why():
    for o in graphattr.operators():
        assert bool(o["why"]) == (o["derivative"] in ("zero", "none")), o
    known = {o["name"]: o for o in graphattr.operators()}
    assert "text" in known["StringSplit"]["why"]
    assert known["ai.onnx.ml:TreeEnsembleRegressor"]["derivative"] == "none"
    assert "opset 27" in known["LinearAttention"]["why"]


@pytest.mark.parametrize("entry", graphattr.methods(), ids=lambda m: m["name"])
def test_methods_name_rules_that_exist(entry):
    from graphattr.method import load_method
    method = load_method(entry["name"])
    assert method.assign or method.procedure in rule.REGISTRY.procedures
    assert {a.rule for a in method.assign} <= set(rule.REGISTRY.rules)
    assert method.seed in rule.REGISTRY.seeds
    assert method.finish in rule.REGISTRY.finishes
    assert set(entry["parameters"]) == set(method.parameters())
    for p in entry["parameters"].values():
        assert "<class" not in p["type"], "types are said in words"


def test_rules_of_the_package_are_typed():
    assert graphattr_rules.__doc__
    for r in rule.REGISTRY.rules.values():
        assert all(p.type is not inspect.Parameter.empty for p in r.params.values()), f"{r.name} has an untyped parameter"
