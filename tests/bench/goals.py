"""What was set as a goal before there was a program, and what has become of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LRP = "lrp.epsilon_plus_flat"


@dataclass(frozen=True)
class Goal:
    """A key of a row, of one network, batch and method, that shall be at most (or at least) a number."""

    net: str
    batch: int
    method: str
    key: str
    limit: float
    least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.least else value <= self.limit

    def off(self, value: float) -> float:
        """By which part of the limit the value is better (positive) or worse."""
        return (value / self.limit - 1) * (1 if self.least else -1)


SAID = {
    "over_forward": "time / forward", "peer_over_ours": "{peer}'s time / ours", "over_steps": "time / passes x one",
    "memory_over_peer": "memory / {peer}'s",
}
FORWARD = [
    ("resnet50", 1, "gradient", 2.1), ("resnet50", 8, "gradient", 2.2), ("vgg16", 1, "gradient", 2.1),
    ("vit_b16", 1, "gradient", 2.15), ("vit_s16", 8, "gradient", 2.3), ("mobilenet_v2", 1, "gradient", 2.8),
    ("resnet50", 1, LRP, 3.3), ("vgg16", 1, LRP, 3.1),
]
FASTER = [
    ("resnet50", 1, "gradient", 1.4), ("mobilenet_v2", 1, "gradient", 1.8), ("vit_b16", 1, "gradient", 1.2),
    ("vit_s16", 8, "gradient", 1.2), ("vgg16", 1, "gradient", 1.1),
    ("resnet50", 1, LRP, 3.5), ("vgg16", 1, LRP, 2.2), ("mobilenet_v2", 1, LRP, 5.0),
]
STEPPED = [(n, 1, m) for n in ("resnet50", "mobilenet_v2") for m in ("integrated_gradients", "smoothgrad", "guided_ig")]
NO_MORE = [
    ("resnet50", 1, "gradient"), ("resnet50", 8, "gradient"), ("vgg16", 1, "gradient"), ("vit_b16", 1, "gradient"),
    ("vit_s16", 8, "gradient"), ("mobilenet_v2", 1, "gradient"), ("resnet50", 1, LRP), ("resnet50", 8, LRP), ("vgg16", 1, LRP),
    ("mobilenet_v2", 1, LRP),
]
GOALS = [
    *(Goal(n, b, m, "over_forward", limit) for n, b, m, limit in FORWARD),
    *(Goal(n, b, m, "peer_over_ours", limit, least=True) for n, b, m, limit in FASTER),
    *(Goal(n, b, m, "over_steps", 1.02) for n, b, m in STEPPED),
    *(Goal(n, b, m, "memory_over_peer", 1.0) for n, b, m in NO_MORE),
]


def judged(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each goal that the rows speak of, in the order of the goals; networks of heavy weights also without prepacking."""
    for goal in GOALS:
        for row in rows:
            if (row["net"], row["batch"], row["method"]) == (goal.net, goal.batch, goal.method) and goal.key in row:
                value = row[goal.key]
                yield {"net": goal.net, "batch": goal.batch, "method": goal.method, "prepacking": row["prepacking"],
                       "what": SAID[goal.key].format(peer=row.get("peer", "")), "key": goal.key,
                       "goal": goal.limit, "least": goal.least,
                       "value": value, "met": goal.met(value), "better_by": goal.off(value)}
