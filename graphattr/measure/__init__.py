"""Measures of explanations: can they be trusted? Each is a function to a `Measure` with one value per sample."""

from .agreement import spearman, top_overlap
from .convergence import chain_convergence, cosine_convergence, random_baseline, singular_ratio
from .faithful import completeness_gap, infidelity, max_sensitivity, sensitivity_n
from .maps import (
    average_prediction_change,
    bounding_box_accuracy,
    class_sensitivity,
    grid_pointing,
    inside_ratio,
    normalised,
    pointing,
    sparseness,
    ssim,
    ssim_flip,
)
from .randomisation import Cascade, cascading_randomisation, random_logit
from .ranking import ordering, pixel_flipping, proportionality
from .result import Measure, bootstrap
from .scoring import Joint, Scorer, explained, joined

__all__ = [
    "Cascade",
    "Joint",
    "Measure",
    "Scorer",
    "average_prediction_change",
    "bootstrap",
    "bounding_box_accuracy",
    "cascading_randomisation",
    "chain_convergence",
    "class_sensitivity",
    "completeness_gap",
    "cosine_convergence",
    "explained",
    "grid_pointing",
    "infidelity",
    "inside_ratio",
    "joined",
    "max_sensitivity",
    "normalised",
    "ordering",
    "pixel_flipping",
    "pointing",
    "proportionality",
    "random_baseline",
    "random_logit",
    "sensitivity_n",
    "singular_ratio",
    "sparseness",
    "spearman",
    "ssim",
    "ssim_flip",
    "top_overlap",
]
