"""What starts the backward pass: functions of the explained output y and the one-hot target e_c."""

from graphattr.rule import Graph, Value, seed


@seed("onehot")
def onehot(g: Graph, y: Value, e: Value) -> tuple[Value, ...]:
    """e_c."""
    return (e,)


@seed("logit")
def logit(g: Graph, y: Value, e: Value) -> tuple[Value, ...]:
    """y_c e_c."""
    return (y * e,)


@seed("relu_logit")
def relu_logit(g: Graph, y: Value, e: Value) -> tuple[Value, ...]:
    """max(y_c, 0) e_c."""
    return (g.Relu(y) * e,)


@seed("prob")
def prob(g: Graph, y: Value, e: Value) -> tuple[Value, ...]:
    """softmax(y)_c e_c, over all outputs of a sample."""
    flat = g.Reshape(y, [0, -1]) if y.rank > 1 else y
    return (g.Reshape(g.Softmax(flat, axis=-1), g.shape(y)) * e,)


@seed("contrast")
def contrast(g: Graph, y: Value, e: Value) -> tuple[Value, ...]:
    """Two passes: y_c e_c, and y (1 - e_c)."""
    return (y * e, y * (1.0 - e))
