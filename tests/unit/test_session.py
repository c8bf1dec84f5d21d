"""Devices: options are checked before ONNX Runtime sees them, nothing falls back in silence, bound runs stay where they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import graphattr
from graphattr import Explainer, RunError
from graphattr.session import CUDA, CUDA_OPTIONS, checked_options, device_of, open_session, run_options
from tests.unit.cuda_nets import NETS
from tests.unit.tiny import array, mlp, model, node

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def explanation():
    return graphattr.convert(NETS["resnet"](17), "lrp.epsilon_plus_flat", target="input")


# -- options ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_tf23": False}, "no provider option 'use_tf23'; did you mean 'use_tf32'?"),
        ({"cudnn_conv_algo_search": "BEST"}, "cudnn_conv_algo_search must be one of EXHAUSTIVE, HEURISTIC, DEFAULT, not 'BEST'"),
        ({"gpu_mem_limit": "8GB"}, "gpu_mem_limit must be a whole number, not '8GB'"),
        ({"use_tf32": "no"}, "use_tf32 must be one of 0, 1, not 'no'"),
    ],
)
def test_wrong_options_are_named(options, said):
    with pytest.raises(RunError) as e:
        checked_options(CUDA, options)
    assert said in str(e.value)


def test_options_become_text():
    given = {"use_tf32": False, "device_id": 1, "cudnn_conv_algo_search": "HEURISTIC"}
    assert checked_options(CUDA, given) == {"use_tf32": "0", "device_id": "1", "cudnn_conv_algo_search": "HEURISTIC"}
    assert checked_options("SomethingElse", {"anything": 3}) == {"anything": "3"}


def test_the_cpu_takes_threads_and_no_options(explanation):
    with pytest.raises(RunError, match="the CPU takes no provider options, and use_tf32 was given"):
        Explainer(explanation, provider_options={"use_tf32": False})
    assert Explainer(explanation, threads=1).session.get_session_options().intra_op_num_threads == 1
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(RunError, match="threads must be a whole number from 1 on"):
            Explainer(explanation, threads=wrong)


def test_a_device_stands_for_providers(explanation):
    device = graphattr.Device("cpu", threads=1)
    assert Explainer(explanation, device).session.get_session_options().intra_op_num_threads == 1
    assert device_of(device, threads=2).threads == 2
    assert str(graphattr.Device("cuda", {"use_tf32": 0}, 3)) == "cuda, use_tf32=0, threads=3"
    plain = Explainer(explanation, graphattr.Device(prepacking=False))
    assert plain.session.get_session_options().get_session_config_entry("session.disable_prepacking") == "1"
    assert device_of(graphattr.Device(prepacking=False), threads=2) == graphattr.Device(threads=2, prepacking=False)
    with pytest.raises(RunError, match="providers must be"):
        Explainer(explanation, 3)
    with pytest.raises(RunError, match="CPU takes no provider options, and use_tf32"):
        Explainer(explanation, [("CPUExecutionProvider", {"use_tf32": 0})])


def test_a_device_reaches_every_function(explanation, monkeypatch):
    from graphattr import session

    seen, named = [], session._providers
    monkeypatch.setattr(session, "_providers", lambda ort, device: seen.append(device.threads) or named(ort, device))
    device = graphattr.Device("cpu", threads=1)
    graphattr.explain(mlp(), array(2, 4), providers=device)
    graphattr.verify(explanation, providers=device)
    graphattr.diff(mlp(), mlp(), array(8, 4), "gradient", providers=device)
    assert len(seen) >= 4
    assert set(seen) == {1}


def test_nothing_falls_back_in_silence(monkeypatch):
    """ONNX Runtime prints, and opens a session of another provider; here that is an error."""
    if CUDA in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(RunError, match="could not open CUDAExec"):
        open_session(mlp(), None, "cuda")


def test_known_options_are_those_of_onnx_runtime():
    if CUDA not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    held = ort.InferenceSession(mlp().SerializeToString(), providers=[CUDA]).get_provider_options()
    if CUDA not in held:
        pytest.skip("no GPU")
    assert set(held[CUDA]) <= set(CUDA_OPTIONS)


# -- bound --------------------------------------------------------------------------------------------------------
def test_bound_gives_the_same_numbers_at_the_same_addresses(explanation):
    explainer, target = Explainer(explanation, threads=1), np.int64([1, 2])
    bound = explainer.bound(array(2, 3, 32, 32), target)
    where = {k: v.data_ptr() for k, v in {**bound.inputs, **bound.outputs}.items()}
    held = []
    for seed in range(3):
        x = array(2, 3, 32, 32, seed=seed)
        a, want = bound(x, target), explainer(x, target)
        np.testing.assert_array_equal(a.scores["image"], want.scores["image"])
        np.testing.assert_array_equal(a.target, want.target)
        assert {k: v.data_ptr() for k, v in {**bound.inputs, **bound.outputs}.items()} == where
        held.append((a, want))
    for a, want in held:  # later runs left earlier results alone
        np.testing.assert_array_equal(a.scores["image"], want.scores["image"])


def test_bound_values_are_read_and_written_in_place(explanation):
    explainer = Explainer(explanation)
    bound = explainer.bound({"image": array(2, 3, 32, 32), "target": np.int64([0, 1])})
    x = array(2, 3, 32, 32, seed=7)
    bound.inputs["image"].update_inplace(x)
    bound.run()
    want = explainer(x, np.int64([0, 1])).scores["image"]
    np.testing.assert_array_equal(bound.outputs["image_attribution"].numpy(), want)


def test_bound_takes_transposed_feeds_and_refuses_other_shapes(explanation):
    explainer, x = Explainer(explanation), array(2, 32, 32, 3).transpose(0, 3, 1, 2)
    bound = explainer.bound(x, 3)
    np.testing.assert_array_equal(bound(x, 3).scores["image"], explainer(x, 3).scores["image"])
    with pytest.raises(RunError, match=r"'image' is bound to the shape \(2, 3, 32, 32\), not \(1, 3, 32, 32\)"):
        bound(x[:1], 3)
    with pytest.raises(RunError, match="NaN"):
        bound(np.full_like(x, np.nan), 3)


def test_bound_knows_the_argmax():
    explainer, x = Explainer(graphattr.convert(mlp(), "gradient")), array(5, 4)
    a, want = explainer.bound(x)(x), explainer(x)
    np.testing.assert_array_equal(a.target, want.target)
    np.testing.assert_array_equal(a.outputs["y"], want.outputs["y"])


def test_what_is_no_tensor_cannot_be_bound():
    nodes = [node("Gemm", "x w", "y"), node("SequenceConstruct", "x x", "s")]
    source = model(nodes, {"x": ["N", 4]}, {"y": ["N", 3]}, {"w": array(4, 3)})
    kind = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    source.graph.output.append(kind)
    with pytest.raises(RunError, match="cannot be bound"):
        Explainer(graphattr.convert(source, "gradient")).bound(array(2, 4))


# -- the command line ---------------------------------------------------------------------------------------------
def test_the_command_line_says_what_runs(explanation, tmp_path, capsys, monkeypatch):
    from graphattr import session
    from graphattr.cli import main

    path, seen = explanation.save(tmp_path / "e.onnx"), []
    opened = session.device_of
    monkeypatch.setattr("graphattr.runtime.device_of", lambda *a: seen.append(opened(*a)) or seen[-1])
    assert main(["verify", str(path), "--threads", "1"]) == 0
    assert (seen[0].provider, seen[0].threads) == ("cpu", 1)
    assert main(["verify", str(path), "--provider-option", "use_tf32=0"]) == 1
    assert "the CPU takes no provider options" in capsys.readouterr().err
    assert main(["verify", str(path), "--provider", "cuda", "--provider-option", "use_tf32"]) == 1
    assert "--provider-option 'use_tf32': write KEY=VALUE" in capsys.readouterr().err
    assert main(["verify", str(path), "--threads", "0"]) == 1
    assert "threads must be a whole number from 1 on, not 0" in capsys.readouterr().err


# -- CUDA graphs --------------------------------------------------------------------------------------------------
def test_only_bound_runs_are_captured():
    """A replay reads where its first run did: runs that are not bound stay out, and each Bound has a graph of its own."""
    class Session:
        def __init__(self, flag):
            self.flag = flag

        def get_provider_options(self):
            return {CUDA: {"enable_cuda_graph": self.flag}}

    assert run_options(Session("0")) is None
    assert run_options(Session("1")).get_run_config_entry("gpu_graph_id") == "-1"
    assert run_options(Session("1"), 3).get_run_config_entry("gpu_graph_id") == "3"
