"""Which kernels run, in which order and with what."""

from typing import Any

import torch
from torch import Tensor

from capsmodel.routing.triton_routing.passes import backward_pass, forward_pass, weight_gradient
from capsmodel.routing.triton_routing.records import (
    Gradients,
    Passes,
    empty_gradients,
    empty_passes,
)
from capsmodel.routing.triton_routing.sums import finish_backward, finish_forward
from capsmodel.routing.triton_routing.tiles import (
    Shape,
    Tile,
    gradient_tile,
    pass_tile,
    power_of_two,
)

GROUPS_AT_ONCE = 32
"""Partial sums that one program of the adding kernels has under way."""
VALUES_AT_ONCE = 256
"""Components of a sample's poses that one program of the adding kernels takes, about."""


class Run:
    """The operands of one forward or backward, and what its launches are told.

    Nothing is kept for another run: two forwards may precede a backward.
    """

    def __init__(self, capsules: Tensor, weight: Tensor, leaky: bool) -> None:
        self.capsules, self.weight = capsules.contiguous(), weight.contiguous()
        inputs, classes, input_dim, dim = weight.shape
        batch = len(capsules)
        self.shape = Shape(batch, inputs, classes, input_dim, dim)
        self.share = 1 / (classes + leaky)
        tile = pass_tile(self.shape)
        groups = tile.groups(inputs)
        self.partial = capsules.new_empty(groups, batch, classes, dim)
        self.passing = (-(-batch // tile.samples), groups)
        self.of_passing = {**self.of_tile(tile), "PARTS": tile.parts}
        parents = min(power_of_two(classes), max(1, VALUES_AT_ONCE // tile.dim))
        self.adding = (batch, -(-classes // parents))
        self.of_adding: dict[str, Any] = {
            "groups": groups,
            "B": batch,
            "J": classes,
            "D": dim,
            "BLOCK_G": GROUPS_AT_ONCE,
            "BLOCK_J": parents,
            "BLOCK_D": tile.dim,
            "num_warps": 8,
        }

    def room_for_pairs(self) -> Tensor:
        """`[B, J, I]`, of unknown contents."""
        batch, inputs, classes, _, _ = self.shape
        return self.capsules.new_empty(batch, classes, inputs)

    def of_tile(self, tile: Tile) -> dict[str, Any]:
        """What a kernel over votes is told."""
        batch, inputs, classes, input_dim, dim = self.shape
        return {
            "B": batch,
            "I": inputs,
            "J": classes,
            "P": input_dim,
            "D": dim,
            "SHARE": self.share,
            "BLOCK_B": tile.samples,
            "BLOCK_I": tile.inputs,
            "BLOCK_P": tile.input_dim,
            "BLOCK_D": tile.dim,
            "num_warps": tile.warps,
            "num_stages": 2,
        }


def route(
    capsules: Tensor, weight: Tensor, bias: Tensor | None, iterations: int, leaky: bool
) -> Passes:
    """All passes of the routing, two launches each."""
    run = Run(capsules, weight, leaky)
    made = empty_passes(run.capsules, run.weight, iterations)
    logits = run.room_for_pairs()
    nothing = run.partial  # stands for what a kernel does not touch
    for number in range(iterations):
        first, last = number == 0, number == iterations - 1
        pose_sum = nothing if first else made.pose_sums[number - 1]
        forward_pass[run.passing](
            run.capsules,
            run.weight,
            pose_sum,
            logits,
            nothing if first else made.couplings[number - 1],
            run.partial,
            FIRST=first,
            LEAKY=leaky,
            **run.of_passing,
        )
        finish_forward[run.adding](
            run.partial,
            nothing if bias is None else bias.contiguous(),
            pose_sum,
            made.totals[number],
            made.poses if last else made.pose_sums[number],
            BIASED=bias is not None,
            EARLIER=not first and not last,
            **run.of_adding,
        )
    return made


def unroute(
    gradient: Tensor, capsules: Tensor, weight: Tensor, made: Passes, leaky: bool, detach: bool
) -> Gradients:
    """The gradients of all operands from that of the poses: two launches a pass, and one."""
    run = Run(capsules, weight, leaky)
    iterations = len(made.totals)
    # Passes are counted from 0; from this one on, logits pass a gradient on.
    first_logits = max(1, iterations - 1) if detach else 1
    grads = empty_gradients(run.capsules, run.weight, made.totals)
    grad_logits = torch.empty_like(made.couplings)
    # The last pass's poses are seen from outside, the others' by the logits of all later passes.
    of_poses = gradient.contiguous()
    grad_coupling = run.room_for_pairs()
    nothing = run.partial
    for number in reversed(range(iterations)):
        first, last = number == 0, number == iterations - 1
        summed = not last and number + 1 >= first_logits
        of_sum = torch.empty_like(of_poses)
        finish_backward[run.adding](
            run.partial,
            of_poses,
            made.totals[number],
            of_sum,
            grads.totals[number],
            SUMMED=summed,
            LATER=number != iterations - 2,
            **run.of_adding,
        )
        backward_pass[run.passing](
            run.capsules,
            run.weight,
            nothing if first else made.pose_sums[number - 1],
            nothing if first else made.couplings[number - 1],
            grads.totals[number],
            grad_coupling,
            nothing if first else grad_logits[number - 1],
            grads.capsules,
            run.partial,
            FIRST=first,
            LOGITS=number >= first_logits,
            ADD=not last,
            **run.of_passing,
        )
        if summed:
            of_poses = of_sum
    tile = gradient_tile(run.shape)
    weight_gradient[run.shape.classes, tile.groups(run.shape.inputs)](
        run.capsules,
        made.pose_sums,
        made.couplings,
        grads.totals,
        grad_logits,
        grads.weight,
        R=iterations,
        FIRST_LOGITS=first_logits - 1,
        **run.of_tile(tile),
    )
    return grads
