"""Learning from data by graph: ONNX Runtime computes the statistics batch by batch, numpy adds them up in float64.

data.py batches, stream.py runs a graph over them, state.py remembers how far, task.py is what a fitter is given; patterns.py and
inverses.py (its least squares: normal.py) are the fitters.
"""

from . import inverses, patterns  # noqa: F401  (registration)
from .fitting import fit_model
from .task import FITTERS, Fitter, Task, fitter

__all__ = ["FITTERS", "Fitter", "Task", "fit_model", "fitter"]
