"""What a routing decided, pass by pass: recorded on request, for analysis."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RoutingTrace:
    """Coupling, agreement and entropy of every pass, without gradients.

    Give an empty one to `Routing.forward`, or see `capsmodel.analysis.trace_routing`. Shape
    letters: R passes, else as in `capsmodel.functional`.
    """

    def __init__(self) -> None:
        self._coupling: list[Tensor] = []
        self._agreement: list[Tensor] = []
        self._entropy: list[Tensor] = []

    @classmethod
    def joined(cls, traces: Sequence["RoutingTrace"]) -> "RoutingTrace":
        """The traces of several batches, of equally many passes each, as one of all samples."""
        joined = cls()
        joined._coupling = list(torch.cat([trace.coupling for trace in traces], dim=1))
        joined._agreement = list(torch.cat([trace.agreement for trace in traces], dim=1))
        joined._entropy = list(torch.cat([trace.entropy for trace in traces], dim=1))
        return joined

    def record(
        self, coupling: Tensor, votes: Tensor, poses: Tensor, shares: Tensor | None = None
    ) -> None:
        """Add a pass.

        Args:
            coupling: What the votes were multiplied by, `[B, J, I]`.
            votes: `[B, J, I, D]`.
            poses: What the pass ended with, `[B, J, D]`.
            shares: The distribution over the parents, `[B, J, I]`, whose entropy is taken; by
                default `coupling`. What is missing to 1 (a leak) counts as one more parent.
        """
        shares = (coupling if shares is None else shares).detach()
        leak = (1 - shares.sum(dim=1)).clamp(min=0)
        entropy = torch.special.entr(shares).sum(dim=1) + torch.special.entr(leak)
        self._coupling.append(coupling.detach().clone())
        self._agreement.append((votes.detach() @ poses.detach().unsqueeze(-1)).squeeze(-1))
        self._entropy.append(entropy)

    def __len__(self) -> int:
        """Passes recorded."""
        return len(self._coupling)

    @property
    def coupling(self) -> Tensor:
        """Coupling coefficients c[i,j] (equation 3), `[R, B, J, I]`."""
        return torch.stack(self._coupling)

    @property
    def agreement(self) -> Tensor:
        """Agreement a[i,j] = <u_hat[j|i], v[j]> with the pass's own poses, `[R, B, J, I]`."""
        return torch.stack(self._agreement)

    @property
    def entropy(self) -> Tensor:
        """Entropy of each input capsule's shares, `[R, B, I]`, in nats: 0 .. ln J (a leak: J+1)."""
        return torch.stack(self._entropy)
