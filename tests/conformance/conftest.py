"""zennit imports torchvision for two class names; beside a CPU torch its compiled operators cannot load, and need not."""

import contextlib

with contextlib.suppress(ImportError):
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # "operator torchvision::nms does not exist": declare them, so that importing the package works
        LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
