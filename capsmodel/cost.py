"""What a training amounts to, told from its settings alone: images and floating point operations.

Imports no torch. The operations are those that a model and a routing state of themselves (see
`ModelConfig.forward_flops`); a member of a user's package may state none.
"""

from dataclasses import dataclass

from capsmodel.config import TrainingConfig

PASSES_OF_A_STEP = 3
"""A way forward, and a way back that takes two: gradients of the values and of the weights."""


@dataclass(frozen=True)
class TrainingCost:
    """What a training amounts to if nothing ends it early; None where it is not known."""

    epochs: int
    training_images: int | None
    """Images learnt from, over all epochs."""
    validation_images: int | None
    """Images evaluated, over all epochs; the test set is not counted."""
    flops: int | None
    """Floating point operations of steps and evaluations; the optimizer's own are left out."""
    unknown: tuple[str, ...] = ()
    """Why something is not known."""


def training_cost(config: TrainingConfig) -> TrainingCost:
    """Images and operations of a training, validation included, the final test not."""
    unknown = []
    parts = getattr(config.dataset, "part_sizes", None)
    if parts is None:
        unknown.append(f"data set {config.dataset.type!r}: its images are counted when it is read")
    forward = getattr(config.model, "forward_flops", None)
    if forward is None:
        unknown.append(_without_cost(config))
    training = validation = flops = None
    if parts is not None:
        training, validation = config.epochs * parts.train, config.epochs * parts.validation
        if forward is not None:
            flops = (PASSES_OF_A_STEP * training + validation) * forward
    return TrainingCost(config.epochs, training, validation, flops, tuple(unknown))


def _without_cost(config: TrainingConfig) -> str:
    """Whose operations nobody has counted: the model's, or those of a routing within it."""
    routing = getattr(config.model, "routing", None)
    within = f" with routing {routing.type!r}" if routing is not None else ""
    return f"model {config.model.type!r}{within}: it states no number of operations"
