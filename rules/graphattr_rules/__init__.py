"""The built-in rules, plugged in by the same entry point as anyone's. One module per family; tables in methods/*.toml."""

from . import (  # noqa: F401  (registration)
    attention,
    cam,
    contrast,
    deeplift,
    deeplift_products,
    dga,
    dmbp,
    fullgrad,
    gradient,
    guided,
    lrp,
    mip_in,
    paths,
    pattern,
    perturb,
    seeds,
    smooth,
)
