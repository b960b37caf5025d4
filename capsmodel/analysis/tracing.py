"""Where a net's capsules sent their votes, pass by pass."""

from torch import Tensor

from capsmodel.analysis.batches import BATCH_SIZE, batches, evaluating
from capsmodel.capsnet import CapsNet
from capsmodel.model import Model
from capsmodel.routing.trace import RoutingTrace


def trace_routing(model: Model, images: Tensor, *, batch_size: int = BATCH_SIZE) -> RoutingTrace:
    """Record the routing of images.

    Args:
        model: A CapsNet.
        images: Floating point `[N, C, H, W]` in [0, 1].
        batch_size: Images that go through the model at once.

    Returns:
        Coupling and agreement `[R, N, J, I]` and entropy `[R, N, I]` of the R passes: with the
        paper's net and three passes 0.3 MB an image.

    Raises:
        TypeError: The model is no CapsNet.
        ValueError: The net's routing records nothing, or an argument has another shape, dtype or
            range.
    """
    if not isinstance(model, CapsNet):
        raise TypeError(f"this {type(model).__name__} routes nothing: expected a CapsNet")
    traces = []
    with evaluating(model):
        for batch, _ in batches(model, images, None, batch_size):
            trace = RoutingTrace()
            model.encode(batch, trace)
            if not len(trace):
                routing = type(model.class_caps.routing).__name__
                raise ValueError(f"{routing} records no pass: its `forward` must use `trace`")
            traces.append(trace)
    return RoutingTrace.joined(traces)
