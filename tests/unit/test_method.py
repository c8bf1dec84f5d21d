"""Tables: what a .toml may say, what is refused and in which words, base tables, own rules."""

from __future__ import annotations

import numpy as np
import pytest

import graphattr
from graphattr.cli import main
from graphattr.method import load_method
from graphattr.rule import REGISTRY
from tests.unit.tiny import array, mlp, saved

X = array(2, 4, seed=9)
LINE = '[[assign]]\nrule = "lrp.epsilon"\n'


def table(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("text", "words"), [
    ("seed = ", ["not a readable TOML table"]),
    ("\xff\xfe", ["mine.toml"]),
    ('sed = "logit"\n' + LINE, ["unknown key 'sed'", "did you mean 'seed'"]),
    ('expects = "all"\n' + LINE, ["expects must be one of seed, difference, score, zero, nothing", "'all'"]),
    ('seed = "logits"\n' + LINE, ["unknown seed 'logits'", "did you mean 'logit'"]),
    ('finish = "rwa"\n' + LINE, ["unknown finish 'rwa'", "did you mean 'raw'"]),
    ('base = "lrp.epsilonn"\n' + LINE, ["base 'lrp.epsilonn' is not an installed table", "did you mean 'lrp.epsilon'"]),
    ("[assign]\nrule = 3", ["[[assign]]"]),
    ("assign = 3", ["[[assign]]"]),
    ("[[assign]]\n", ["[[assign]] 1", "needs a rule"]),
    ("[[assign]]\nrule = 3\n", ["[[assign]] 1", "needs a rule"]),
    (LINE + '[[assign]]\nrule = "lrp.epsilom"\n', ["[[assign]] 2", "unknown rule 'lrp.epsilom'", "did you mean 'lrp.epsilon'"]),
    ('[[assign]]\nrule = "gradient"\nwheer = {}\n', ["[[assign]] 1", "unknown key 'wheer'", "did you mean 'where'"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { knd = "linear" }\n', ["[[assign]] 1", "unknown condition 'knd'", "'kind'"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { kind = "liner" }\n', ["[[assign]] 1", "unknown kind 'liner'", "'linear'"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { kind = ["sum", "liner"] }\n', ["unknown kind 'liner'"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { position = "middle" }\n', ["[[assign]] 1", "first, last, input", "'middle'"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { position = ["first"] }\n', ["[[assign]] 1", "position"]),
    ('[[assign]]\nrule = "gradient"\nwhere = "linear"\n', ["[[assign]] 1", "where", "table"]),
    ('[[assign]]\nrule = "gradient"\nwith = 3\n', ["[[assign]] 1", "with", "table"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { name = 3 }\n', ["[[assign]] 1", "name"]),
    ('[[assign]]\nrule = "gradient"\nwhere = { op = [3] }\n', ["[[assign]] 1", "op"]),
    ('[[assign]]\nrule = "lrp.epsilon"\nwith = { epss = 1 }\n', ["[[assign]] 1", "no parameter 'epss'", "did you mean 'eps'"]),
    ('[[assign]]\nrule = "lrp.epsilon"\nwith = { eps = "a" }\n', ["[[assign]] 1", "'eps' must be a number", "'a'"]),
    ('[[assign]]\nrule = "lrp.epsilon"\nwith = { eps = true }\n', ["'eps' must be a number", "True"]),
    ('[[assign]]\nrule = "lrp.epsilon"\nwith = { eps = nan }\n', ["'eps' must be a number"]),
    ('[[assign]]\nrule = "lrp.epsilon"\nwith = { bias = "keep" }\n', ["'bias' must be one of 'absorb', 'ignore'", "'keep'"]),
    (LINE + "[with]\nepss = 1\n", ["[with]", "'epss'", "did you mean 'eps'"]),
    (LINE + '[with]\neps = "a"\n', ["[with]", "'eps' must be a number"]),
    ("with = 3\n" + LINE, ["with", "table"]),
    ('summary = "no line at all"\n', ["[[assign]]"]),
])
def test_what_a_table_may_not_say(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(graphattr.MethodError) as e:
        load_method(path)
    for word in ["mine.toml", *words]:
        assert word in str(e.value), str(e.value)


def test_unknown_methods():
    for name, word in (("lrp.epsilonn", "did you mean 'lrp.epsilon'"), ("nosuch.toml", "no such method file"),
                       ("_relevance", "unknown method"), ("", "unknown method"), ("../methods/gradient", "unknown method")):
        with pytest.raises(graphattr.MethodError, match=word):
            load_method(name)
    for thing in (None, 3, b"gradient"):
        with pytest.raises(graphattr.MethodError, match="a method is"):
            graphattr.convert(mlp(), method=thing)
    with pytest.raises(graphattr.MethodError, match="no method was given"):
        graphattr.convert(mlp(), method=[])
    with pytest.raises(graphattr.MethodError, match="twice"):
        graphattr.convert(mlp(), method=["gradient", "gradient"])


def test_a_base_table_comes_after_its_own_lines(tmp_path):
    path = table(tmp_path, 'base = "lrp.epsilon"\nsummary = "mine"\n[[assign]]\nwhere = { name = "first" }\nrule = "lrp.zplus"\n'
                           '[with]\neps = 0.5\n')
    own, base = load_method(path), load_method("lrp.epsilon")
    assert own.name == "mine"
    assert own.summary == "mine"
    assert (own.source, own.seed) == (base.source, base.seed)
    assert [a.rule for a in own.assign] == ["lrp.zplus", *(a.rule for a in base.assign)]
    assert own.assign[0].line == "mine.toml [[assign]] 1"
    assert next(a for a in own.assign if a.rule == "lrp.epsilon").params["eps"] == 0.5
    explanation = graphattr.convert(mlp(), method=path)
    layers = {e["layer"]: e for e in explanation.manifest["layers"]["mine"]}
    assert layers["first"]["rule"] == "lrp.zplus"
    assert layers["first"]["line"] == "mine.toml [[assign]] 1"
    assert layers["second"]["rule"] == "lrp.epsilon"
    assert layers["second"]["params"] == {"eps": 0.5}


def test_a_base_may_lie_beside_the_table(tmp_path):
    table(tmp_path, 'base = "gradient"\n', "lower.toml")
    assert load_method(table(tmp_path, 'base = "lower"\n')).assign == load_method("gradient").assign


def test_a_table_that_is_its_own_base(tmp_path):
    with pytest.raises(graphattr.MethodError, match="base"):
        load_method(table(tmp_path, 'base = "mine"\n' + LINE))
    table(tmp_path, 'base = "b"\n' + LINE, "a.toml")
    table(tmp_path, 'base = "a"\n' + LINE, "b.toml")
    with pytest.raises(graphattr.MethodError, match="base"):
        load_method(tmp_path / "a.toml")


def test_a_table_may_hide_an_installed_name(tmp_path):
    """gradient.toml based on "gradient" means the installed one."""
    path = table(tmp_path, 'base = "gradient"\nsummary = "mine"\n', "gradient.toml")
    assert load_method(path).summary == "mine"
    assert load_method("gradient").summary != "mine"


# -- parameters ---------------------------------------------------------------------------------------------------
def test_parameters_of_the_caller():
    explanation = graphattr.convert(mlp(), method="lrp.epsilon", eps=0.25)
    layers = explanation.manifest["layers"]["lrp.epsilon"]
    assert [e["params"]["eps"] for e in layers if e["rule"] == "lrp.epsilon"] == [0.25, 0.25]
    assert explanation.manifest["params"] == {"eps": 0.25}
    for params, words in (({"epss": 1}, "did you mean 'eps'"), ({"eps": "a"}, "must be a number"),
                          ({"eps": np.nan}, "must be a number"), ({"seed": "nope"}, "unknown seed 'nope'"),
                          ({"bn": "x"}, "'bn' must be one of")):
        with pytest.raises(graphattr.MethodError, match=words):
            graphattr.convert(mlp(), method="lrp.epsilon", **params)
    small = graphattr.Explainer(graphattr.convert(mlp(), method="lrp.epsilon", eps=np.float32(1e-6)))(X).scores["x"]
    large = graphattr.Explainer(explanation)(X).scores["x"]
    assert not np.allclose(small, large)


def test_parameters_that_are_needed():
    with pytest.raises(graphattr.MethodError, match=r"needs a value for 'low' .*'lrp.zbox' at layer 'first'.*--set low="):
        graphattr.convert(mlp(), method="lrp.zbox")
    with pytest.raises(graphattr.MethodError, match=r"shape \(3,\) does not fit 'x' of shape \(N, 4\)"):
        graphattr.convert(mlp(), method="gradient_x_input", baselines=[1.0, 2.0, 3.0])
    for fits in (0.5, [0.1] * 4, np.ones(4), np.ones((1, 4), np.float32), "input"):
        graphattr.convert(mlp(), method="gradient_x_input", baselines=fits)
    for wrong in ("x", {"x": 1}, np.ones((2, 2, 4))):
        with pytest.raises(graphattr.MethodError, match="baselines"):
            graphattr.convert(mlp(), method="gradient_x_input", baselines=wrong)


def test_several_methods_share_parameters():
    explanation = graphattr.convert(mlp(), method=["lrp.epsilon", "gradient"], eps=0.25, delta=True, ledger=True)
    assert explanation.outputs == ["y", "x_attribution_lrp_epsilon", "y_delta_lrp_epsilon", "y_ledger_lrp_epsilon",
                                   "x_attribution_gradient", "y_delta_gradient", "y_ledger_gradient"]
    alone = graphattr.Explainer(graphattr.convert(mlp(), method="lrp.epsilon", eps=0.25))(X).scores["x"]
    both = graphattr.Explainer(explanation)(X)
    assert np.allclose(both.scores["x/lrp.epsilon"], alone)
    with pytest.raises(graphattr.MethodError, match="epss"):
        graphattr.convert(mlp(), method=["lrp.epsilon", "gradient"], epss=0.25)


# -- layers without a rule ----------------------------------------------------------------------------------------
def test_layers_without_a_rule(tmp_path):
    only = table(tmp_path, '[[assign]]\nwhere = { kind = "linear" }\nrule = "lrp.epsilon"\n')
    with pytest.raises(graphattr.UnsupportedOp, match=r"'mine' has no rule for layer 'relu' \(operator Relu, kind relu\).*"
                                                      r"'first' -> 'relu' -> 'second'.*strict=False"):
        graphattr.convert(mlp(), method=only)
    explanation = graphattr.convert(mlp(), method=only, strict=False)
    assert explanation.manifest["fallbacks"] == ["relu"]
    assert next(e for e in explanation.manifest["layers"]["mine"] if e["layer"] == "relu")["rule"] == "gradient"
    assert graphattr.convert(mlp(), method="lrp.epsilon").manifest["fallbacks"] == []
    found = graphattr.inspect(mlp(), only)
    assert [r["name"] for r in found["layers"] if r["problem"]] == ["relu"]
    assert found["coverage"]["covered"] == 2


def test_rules_take_their_kinds_only(tmp_path):
    everywhere = table(tmp_path, '[[assign]]\nrule = "lrp.zplus"\n[[assign]]\nrule = "gradient"\n')
    layers = {e["layer"]: e["rule"] for e in graphattr.convert(mlp(), method=everywhere).manifest["layers"]["mine"]}
    assert layers == {"first": "lrp.zplus", "relu": "gradient", "second": "lrp.zplus"}


# -- rules of one's own -------------------------------------------------------------------------------------------
HEAD = "from graphattr.rule import rule\n"
OWN = '''
from graphattr.rule import Graph, Out, Site, Value, rule

@rule("NAME.half", kinds={"linear"})
def half(g: Graph, layer: Site, r: Value, *, factor: float = 0.5, mode: str = "plain") -> Out:
    """factor times the gradient."""
    return layer.vjps(r * factor)
'''


@pytest.fixture
def own(tmp_path, request):
    """A rule file of one's own, forgotten afterwards."""
    before = {k: dict(getattr(REGISTRY, k)) for k in ("rules", "seeds", "finishes")}
    name = request.node.name.split("[")[0]
    path = tmp_path / "my_rules.py"
    path.write_text(OWN.replace("NAME", name))
    method = table(tmp_path, f'base = "gradient"\n[[assign]]\nwhere = {{ kind = "linear" }}\nrule = "{name}.half"\n')
    yield path, method, f"{name}.half"
    for k, v in before.items():
        getattr(REGISTRY, k).clear()
        getattr(REGISTRY, k).update(v)
    REGISTRY.loaded.discard(str(path.resolve()))


def test_own_rules(own):
    path, method, name = own
    with pytest.raises(graphattr.MethodError, match=f"unknown rule '{name}'"):
        graphattr.convert(mlp(), method=method)
    plain = graphattr.Explainer(graphattr.convert(mlp(), method="gradient"))(X).scores["x"]
    for given in ([path], str(path), path):
        mine = graphattr.convert(mlp(), method=method, rules=given)
        assert np.allclose(graphattr.Explainer(mine)(X).scores["x"], plain / 4)
    third = graphattr.convert(mlp(), method=method, rules=[path], factor=3)
    assert np.allclose(graphattr.Explainer(third)(X).scores["x"], plain * 9, rtol=1e-5)
    assert name in {r["name"] for r in graphattr.rules()}
    assert graphattr.inspect(mlp(), method, rules=[path])["coverage"]["covered"] == 3


def test_own_rules_on_the_command_line(own, tmp_path, capsys):
    path, method, name = own
    source = saved(mlp(), tmp_path)
    assert main(["convert", str(source), "-o", str(tmp_path / "o.onnx"), "--method", str(method), "--rules", str(path),
                 "--set", "factor=1"]) == 0
    assert main(["inspect", str(source), "--method", str(method), "--rules", str(path), "--json"]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(("text", "words"), [
    ("1 / 0", ["ZeroDivisionError"]), ("import nosuchmodule", ["nosuchmodule"]), ("def f(:", ["SyntaxError"]),
    (HEAD + '@rule("k", kinds={"liner"})\ndef f(g, layer, r): ...', ["unknown kind 'liner'", "'linear'"]),
    (HEAD + '@rule("lrp.epsilon")\ndef f(g, layer, r): ...', ["'lrp.epsilon' is registered twice", "my_rules.py"]),
])
def test_rule_files_that_fail(tmp_path, text, words):
    path = tmp_path / "my_rules.py"
    path.write_text(text)
    with pytest.raises(graphattr.MethodError) as e:
        graphattr.convert(mlp(), rules=[path])
    for word in words:
        assert word in str(e.value)
    with pytest.raises(graphattr.MethodError, match="no such rule file"):
        graphattr.convert(mlp(), rules=[tmp_path / "gone.py"])


def test_a_rule_that_returns_nonsense(own, tmp_path):
    path, method, name = own
    for body, words in (("return (r, r)", "2 relevances for 1 data inputs"), ("return None", "return"), ("return 3", "return"),
                        ("return g.Reshape(r, [3, 7, 9])", name)):
        path.write_text(OWN.replace("NAME.half", name).replace("return layer.vjps(r * factor)", body))
        REGISTRY.rules.pop(name, None)
        REGISTRY.loaded.discard(str(path.resolve()))
        with pytest.raises(graphattr.GraphattrError, match=words) as e:
            graphattr.convert(mlp(), method=method, rules=[path])
        assert name in str(e.value)


def test_a_rule_that_raises(own):
    path, method, name = own
    path.write_text(OWN.replace("NAME.half", name).replace("return layer.vjps(r * factor)", "raise KeyError('oops')"))
    with pytest.raises(graphattr.GraphattrError, match="oops") as e:
        graphattr.convert(mlp(), method=method, rules=[path])
    assert name in str(e.value)
    assert "'second'" in str(e.value)


def test_given_is_a_condition(tmp_path):
    """A line with `given` speaks only when the caller gave that parameter."""
    path = table(tmp_path, 'base = "lrp.epsilon"\n[[assign]]\nrule = "lrp.zbox"\n'
                           'where = { kind = "linear", given = ["low", "high"] }\n')

    def first(**params):
        return graphattr.convert(mlp(), method=path, **params).manifest["layers"]["mine"][0]["rule"]

    assert first(low=-3.0, high=3.0) == "lrp.zbox"
    assert first() == "lrp.epsilon"
    assert first(low=-3.0) == "lrp.epsilon"


@pytest.mark.parametrize("method", ["gradient_x_input", "lrp.epsilon", "integrated_gradients", "deeplift.rescale"])
def test_delta_counts_once_what_lies_above_another(method):
    alone = graphattr.explain(mlp(), X, method, target=0, wrt=["x"], delta=True)
    both = graphattr.explain(mlp(), X, method, target=0, wrt=["h", "x"], delta=True)
    np.testing.assert_allclose(both.delta, alone.delta, atol=1e-6)
    assert set(both.scores) == {"x", "h"}
