"""`graphattr ARGS` called from a test."""

from __future__ import annotations

from graphattr import cli


def caller(capfd):
    """A function of the arguments: (exit code, stdout, stderr); it fails on a traceback."""
    def call(*argv):
        capfd.readouterr()
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err
    return call
