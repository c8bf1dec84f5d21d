"""An exported ONNX model goes in, an ONNX model that also explains its predictions comes out."""

from . import measure
from .api import convert, explain, explain_batches, explain_dataset, fit, inspect, methods, operators, placement, rules, verify
from .audit import Report, audit
from .compare import Difference, diff
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
from .figure import plot
from .fitted import Fitted
from .method import Method
from .runtime import Attribution, Explainer
from .session import Device
from .version import __version__

Attribution.plot = plot

__all__ = [
    "Attribution",
    "BuildError",
    "Device",
    "Difference",
    "Explainer",
    "Explanation",
    "FitWarning",
    "Fitted",
    "GraphattrError",
    "Method",
    "MethodError",
    "MissingFit",
    "ModelError",
    "Report",
    "RunError",
    "TargetError",
    "UnsupportedOp",
    "WriteError",
    "__version__",
    "audit",
    "convert",
    "diff",
    "explain",
    "explain_batches",
    "explain_dataset",
    "fit",
    "inspect",
    "measure",
    "methods",
    "operators",
    "placement",
    "plot",
    "rules",
    "verify",
]
