"""An exported ONNX model goes in, an ONNX model that also explains its predictions comes out."""

from .api import convert, explain, fit, inspect, methods, operators, rules, verify
from .errors import (
    BuildError,
    FitWarning,
    GraphattrError,
    MethodError,
    MissingFit,
    ModelError,
    RunError,
    TargetError,
    UnsupportedOp,
    WriteError,
)
from .export import Explanation
from .fitted import Fitted
from .method import Method
from .runtime import Attribution, Explainer
from .version import __version__

__all__ = [
    "Attribution",
    "BuildError",
    "Explainer",
    "Explanation",
    "FitWarning",
    "Fitted",
    "GraphattrError",
    "Method",
    "MethodError",
    "MissingFit",
    "ModelError",
    "RunError",
    "TargetError",
    "UnsupportedOp",
    "WriteError",
    "__version__",
    "convert",
    "explain",
    "fit",
    "inspect",
    "methods",
    "operators",
    "rules",
    "verify",
]
