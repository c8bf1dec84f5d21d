"""What an audit leaves on disk: reports when it finished, the state when it did not, and the same report after both."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import graphattr
from graphattr.audit import Profile
from graphattr.runtime import Explainer
from tests.unit.killed import DYING
from tests.unit.test_audit import FEW, QUICK, X, cnn
from tests.unit.tiny import saved

pytest.importorskip("onnxruntime")
FILES = ["report.csv", "report.html", "report.json", "timings.json"]
CHILD = f"""{DYING}
from graphattr.audit import Profile
die_after(int(sys.argv[2]), signal.SIGKILL)
asked = Profile("q", samples=4, gallery=2, measures={{m: {{}} for m in sys.argv[3:]}})
graphattr.audit("m.onnx", "x.npy", ["gradient", "lrp.zplus"], asked, sys.argv[1], batch_size=2)
"""


@pytest.fixture
def calls(monkeypatch):
    """How many samples each run of an explanation had."""
    ran, run = [], Explainer.__call__

    def counting(self, feeds, target=None):
        ran.append(len(next(iter(feeds.values()))))
        return run(self, feeds, target)

    monkeypatch.setattr(Explainer, "__call__", counting)
    return ran


def test_a_finished_audit_leaves_its_reports_alone(tmp_path):
    graphattr.audit(cnn(1), X, ["gradient"], QUICK, tmp_path / "r")
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == FILES


def test_what_is_not_the_audit_s_own_stays(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "notes.txt").write_text("mine")
    graphattr.audit(cnn(1), X, ["gradient"], QUICK, tmp_path)
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["notes.txt"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("runs", [1, 5, 17])
def test_a_killed_process_goes_on_to_the_same_files(tmp_path, calls, runs):
    """Killed in the maps of the first method, in its randomisation, and in the second method's: only what is missing is run."""
    saved(cnn(3), tmp_path)
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run([sys.executable, "-c", CHILD, "r", str(runs), *FEW], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "r").iterdir()) == [tmp_path / "r" / "state"]
    asked = Profile("q", samples=4, gallery=2, measures=FEW)
    order = (tmp_path / "m.onnx", tmp_path / "x.npy", ["gradient", "lrp.zplus"], asked)
    graphattr.audit(*order, tmp_path / "r", batch_size=2)
    again = len(calls)
    graphattr.audit(*order, tmp_path / "whole", batch_size=2)
    assert again < len(calls) - again
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == FILES
    for name in FILES[:3]:
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@contextlib.contextmanager
def stopped(monkeypatch, calls, after):
    """Ctrl-C in the run behind so many."""
    counting = Explainer.__call__

    def stopping(self, feeds, target=None):
        if len(calls) == after:
            raise KeyboardInterrupt
        return counting(self, feeds, target)

    with monkeypatch.context() as patch:
        patch.setattr(Explainer, "__call__", stopping)
        yield


def test_maps_are_kept_batch_by_batch(tmp_path, monkeypatch, calls):
    """Stopped in the third of four batches: two are read, two are run."""
    asked = Profile("s", samples=4, measures={"sparseness": {}})
    with stopped(monkeypatch, calls, 2), pytest.raises(KeyboardInterrupt):
        graphattr.audit(cnn(1), X, ["gradient"], asked, tmp_path, batch_size=1)
    assert len(list((tmp_path / "state").iterdir())) == 2
    calls.clear()
    report = graphattr.audit(cnn(1), X, ["gradient"], asked, tmp_path, batch_size=1)
    assert calls == [1, 1]
    assert report.data == graphattr.audit(cnn(1), X, ["gradient"], asked, batch_size=1).data


def test_randomisation_is_kept_layer_by_layer(tmp_path, monkeypatch, calls):
    """Stopped at the third of four layers: one batch of maps and two layers are read, two layers are run."""
    asked = Profile("s", samples=4, measures={"randomisation": {}})
    with stopped(monkeypatch, calls, 3), pytest.raises(KeyboardInterrupt):
        graphattr.audit(cnn(3), X, ["gradient"], asked, tmp_path)
    calls.clear()
    report = graphattr.audit(cnn(3), X, ["gradient"], asked, tmp_path)
    assert len(calls) == 2
    assert report.data == graphattr.audit(cnn(3), X, ["gradient"], asked).data
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_seconds_stand_beside_the_report(tmp_path):
    report = graphattr.audit(cnn(1), X, ["gradient"], QUICK, tmp_path)
    assert json.loads((tmp_path / "timings.json").read_text()) == report.timings
    assert list(report.timings["gradient"]) == ["maps", *FEW]
    assert all(s >= 0 for s in report.timings["gradient"].values())
    assert "seconds" not in json.dumps(report.data)


def test_a_folder_that_cannot_be_made_is_said_first(tmp_path, calls):
    (tmp_path / "f").write_text("")
    with pytest.raises(graphattr.WriteError, match="cannot make the folder"):
        graphattr.audit(cnn(1), X, ["gradient"], QUICK, tmp_path / "f")
    assert not calls


def test_an_error_leaves_no_empty_folder(tmp_path):
    with pytest.raises(graphattr.TargetError):
        graphattr.audit(cnn(1), X, ["gradient"], QUICK, tmp_path / "r", output="z")
    assert not (tmp_path / "r").exists()
