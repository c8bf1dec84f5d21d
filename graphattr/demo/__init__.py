"""The README's main job, without a download: `graphattr demo`."""

from graphattr.demo.run import run

__all__ = ["run"]
