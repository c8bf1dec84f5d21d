"""Lines for a program of its own that a signal ends in the middle of its work."""

DYING = """
import os, signal, sys
import numpy as np
import graphattr
from graphattr.runtime import Explainer

def die_after(left, by):
    run = Explainer.__call__
    def dying(self, feeds, target=None):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), by)
        return run(self, feeds, target)
    Explainer.__call__ = dying
"""
