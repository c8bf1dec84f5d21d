"""Can the explanations of a model be trusted? Measures of several methods on data, a verdict in words, a page, and a gate."""

from . import localised as localised  # registers its measures
from .profile import Profile, load_profile
from .run import METHODS, Report, audit

__all__ = ["METHODS", "Profile", "Report", "audit", "load_profile"]
