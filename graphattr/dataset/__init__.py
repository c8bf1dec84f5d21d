"""Explaining many inputs: read ahead, run in batches, written behind; what was begun goes on."""

from .run import FEW, WRITE, Work, pairs

__all__ = ["FEW", "WRITE", "Work", "pairs"]
