"""The built-in rules, plugged in by the same entry point as anyone's. One module per family; tables in methods/*.toml."""

from . import attention, contrast, dmbp, gradient, guided, lrp, paths, seeds, smooth  # noqa: F401  (registration)
