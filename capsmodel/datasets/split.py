"""Holding out a part of a labelled set, by seed."""

import torch
from torch import Tensor


def hold_out(
    labels: Tensor, fraction: float, seed: int, *, stratified: bool = True
) -> tuple[Tensor, Tensor]:
    """Split indices at random into a part to keep and a part to hold out.

    Args:
        labels: int64 `[N]`.
        fraction: Share to hold out, in [0, 1); rounded to whole examples.
        seed: The same seed gives the same parts.
        stratified: Hold out the same share of every class.

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
    if stratified:
        groups = [shuffled[labels[shuffled] == label] for label in torch.unique(labels)]
    else:
        groups = [shuffled]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for group in groups:
        held_out[group[: round(len(group) * fraction)]] = True
    everything = torch.arange(len(labels))
    return everything[~held_out], everything[held_out]
