"""Choosing parts of a labelled set, by seed: to hold out, or to learn from."""

import torch
from torch import Tensor


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices at random into a part to keep and a part to hold out, class by class.

    Args:
        labels: int64 `[N]`.
        fraction: Share of every class to hold out, in [0, 1); rounded to whole examples.
        seed: The same seed gives the same parts.

    Returns:
        Indices kept and indices held out, each int64 and ascending.

    Raises:
        ValueError: `fraction` lies outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected 0 <= fraction < 1")
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    groups = [shuffled[labels[shuffled] == label] for label in torch.unique(labels)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for group in groups:
        held_out[group[: round(len(group) * fraction)]] = True
    everything = torch.arange(len(labels))
    return everything[~held_out], everything[held_out]


def choose_per_class(labels: Tensor, indices: Tensor, per_class: int, seed: int) -> Tensor:
    """Choose at random so many examples of each class.

    With one seed, the examples of a smaller number are among those of a larger one.

    Args:
        labels: int64 `[N]`, the labels of the whole set.
        indices: int64 `[K]`, the examples to choose from.
        per_class: Examples of each class, at least 1.
        seed: The same seed gives the same choice.

    Returns:
        The chosen ones of `indices`, int64 and ascending.

    Raises:
        ValueError: A class of the set has fewer examples to choose from, or `per_class` is below 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}, expected at least 1")
    labels, indices = labels.cpu(), indices.cpu()
    available = torch.bincount(labels[indices], minlength=int(labels.max()) + 1)
    classes = torch.unique(labels).tolist()
    rarest = min(classes, key=lambda label: int(available[label]))
    if available[rarest] < per_class:
        raise ValueError(
            f"per_class is {per_class}, but class {rarest} has only {int(available[rarest])} "
            "images to learn from: choose at most that many, or hold out fewer for validation"
        )
    generator = torch.Generator().manual_seed(seed)
    shuffled = indices[torch.randperm(len(indices), generator=generator)]
    groups = [shuffled[labels[shuffled] == label][:per_class] for label in classes]
    return torch.cat(groups).sort().values
