"""Everything that graphattr raises on purpose.

GraphattrError
    ModelError         the file cannot be read, or is outside what we accept
    UnsupportedOp      no derivative or no rule for an operator on the path
    MethodError        unknown method or rule, bad parameter, no table line matched
        MissingFit     a rule needs learned parameters, and there are none
    TargetError        a target, output or wrt that the model does not have
    BuildError         an emitted node is not legal ONNX
    RunError           wrong feeds, or ONNX Runtime refused
    WriteError         the result could not be written

FitWarning             a warning, no error: what was learned rests on too few samples, or on a system close to singular

A message says what is wrong, where it is, and what to do about it.
"""

import difflib
from collections.abc import Iterable


class GraphattrError(Exception):
    """Root of the tree: catch this one to catch them all."""


class ModelError(GraphattrError):
    pass


class UnsupportedOp(GraphattrError):
    pass


class MethodError(GraphattrError):
    pass


class MissingFit(MethodError):
    pass


class TargetError(GraphattrError):
    pass


class BuildError(GraphattrError):
    pass


class RunError(GraphattrError):
    pass


class WriteError(GraphattrError):
    pass


class FitWarning(UserWarning):
    pass


def did_you_mean(word: str, known: Iterable[str], most: int = 3) -> str:
    """'; did you mean a, b?' when something close is known, else ''."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = [by_lower[k] for k in difflib.get_close_matches(str(word).lower(), by_lower, n=most, cutoff=0.55)]
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
