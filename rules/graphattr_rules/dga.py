"""Distilled Gradient Aggregation: what a method says while the input loses the entries that matter least and most."""

from fractions import Fraction

from graphattr.errors import MethodError
from graphattr.rule import Graph, Job, MethodName, Value, procedure

from .quantile import order_statistics

LARGEST = 10**9  # denominators of q; an index that is within 1e-9 of a whole number then is that number


@procedure("dga")
def dga(job: Job, *, local: MethodName = MethodName("fullgrad.uniform"), n_steps: int = 30, q: float = 0.9) -> list[Value]:
    """mean_t max(phi_t, 0), phi_t what `local` says at cur_t, cur_1 = x, cur_t+1 = x (t/n Mw + (1 - t/n) Me); n = n_steps.

    Mw drops what lies at or below the t/n quantile of |phi|, Me what lies at or above the q quantile of phi, over all entries
    of a sample.  Jeon et al. 2022.
    """
    if n_steps < 1 or not 0 <= q <= 1:
        raise MethodError(f"dga: n_steps is at least 1 and q a share from 0 to 1, not {n_steps} and {q}")
    xs, share = job.xs, Fraction(repr(float(q))).limit_denominator(LARGEST)

    def step(body: Graph, i: Value, states: list[Value]) -> list[Value]:
        sums, now = states[: len(xs)], states[len(xs) :]
        maps = job.at(body, now).explained_by(local)
        check_shapes(job, maps, local)
        flat = flattened(body, maps)
        weak, strong = quantile(body, body.Abs(flat), i + 1, n_steps), quantile(body, flat, share.numerator, share.denominator)
        t = body.CastLike(i + 1, flat) / float(n_steps)
        kept = [kept_share(body, m, weak, strong, t) for m in maps]
        return [*(s + body.Relu(m) for s, m in zip(sums, maps, strict=True)), *(x * k for x, k in zip(xs, kept, strict=True))]

    made = job.repeat(n_steps, [*(x * 0.0 for x in xs), *xs], step)
    return [s * (1.0 / n_steps) for s in made[: len(xs)]]


def kept_share(g: Graph, m: Value, weak: Value, strong: Value, t: Value) -> Value:
    """t [|m| > weak] + (1 - t) [m < strong]."""
    axes = list(range(2, m.rank))
    weak, strong = (g.Squeeze(v, [1]) if m.rank == 1 else g.Unsqueeze(v, axes) if axes else v for v in (weak, strong))
    return g.Where(g.Abs(m) > weak, t, 0.0) + g.Where(m < strong, 1.0 - t, 0.0)


def quantile(g: Graph, v: Value, top: Value | int, bottom: int) -> Value:
    """The top/bottom quantile of each row of v, [N, 1]: v[lo] + frac (v[lo+1] - v[lo]) sorted.

    lo + frac = top (n - 1) / bottom, in whole numbers.
    """
    product = (g.Slice(g.shape(v), [1], [2]) - 1) * top
    low = product / bottom
    below, above = order_statistics(g, v, low)
    frac = g.CastLike(product - low * bottom, v) / float(bottom)
    return below + frac * (above - below)


def flattened(g: Graph, maps: list[Value]) -> Value:
    """All entries of a sample in one row."""
    rows = [g.Flatten(m, axis=1) for m in maps]
    return rows[0] if len(rows) == 1 else g.Concat(*rows, axis=1)


def check_shapes(job: Job, maps: list[Value], local: str) -> None:
    """MethodError where a map has not the shape of its tensor."""
    for x, m in zip(job.xs, maps, strict=True):
        pairs = zip(x.shape or (), m.shape or (), strict=False)
        if x.rank != m.rank or any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int)):
            raise MethodError(f"dga: the map of local={local!r} has shape {m.shape}, and {job.name_of(x)!r} has {x.shape}; "
                              "choose a method whose map has the shape of its tensor")
