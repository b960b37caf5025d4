"""The yardstick: CapsNet as one writes it down from the paper, in eager PyTorch.

Sabour, Frosst, Hinton 2017, "the paper". Nothing is tuned and nothing held back: correct
mathematics, one tensor operation for each line of the paper, gradients through every pass of the
routing. It imports nothing of capsmodel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE = 1e-3
RECONSTRUCTION_WEIGHT = 0.0005
TINY = 1e-8
"""Keeps the root in `squash` away from 0, where its gradient is infinite."""


class TextbookCapsNet(nn.Module):
    """Convolution, primary capsules, digit capsules, decoder (figures 1 and 2).

    The defaults are the paper's MNIST net with 8,215,568 parameters.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        channels: int = 256,
        types: int = 32,
        primary_dim: int = 8,
        digit_dim: int = 16,
        hidden: tuple[int, int] = (512, 1024),
        iterations: int = 3,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        colours, height, width = image_shape
        grid = ((height - 8 - 9) // 2 + 1) * ((width - 8 - 9) // 2 + 1)
        self.conv = nn.Conv2d(colours, channels, kernel_size=9)
        self.primary = PrimaryCapsules(channels, types, primary_dim)
        self.digits = DigitCapsules(types * grid, primary_dim, classes, digit_dim, iterations)
        self.decoder = nn.Sequential(
            nn.Linear(classes * digit_dim, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], colours * height * width),
            nn.Sigmoid(),
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lengths `[B, J]` and reconstructions `[B, C, H, W]` of images `[B, C, H, W]` in [0, 1].

        An image is drawn from the capsule of its label, int64 `[B]`; without labels from the
        longest one.
        """
        capsules = self.digits(self.primary(F.relu(self.conv(images))))
        lengths = capsules.norm(dim=-1)
        chosen = lengths.argmax(dim=1) if labels is None else labels
        mask = F.one_hot(chosen, lengths.shape[1]).to(capsules.dtype)
        reconstruction = self.decoder((capsules * mask[:, :, None]).flatten(1))
        return lengths, reconstruction.view(-1, *self.image_shape)


class PrimaryCapsules(nn.Module):
    """A convolution whose channels are capsules: `dim` channels to each of `types`."""

    def __init__(self, channels: int, types: int, dim: int) -> None:
        super().__init__()
        self.types = types
        self.dim = dim
        self.conv = nn.Conv2d(channels, types * dim, kernel_size=9, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """Capsules `[B, I, P]` in the order type, row, column."""
        maps = self.conv(features)
        batch, _, rows, columns = maps.shape
        capsules = maps.view(batch, self.types, self.dim, rows, columns)
        capsules = capsules.permute(0, 1, 3, 4, 2).reshape(batch, -1, self.dim)
        return squash(capsules)


class DigitCapsules(nn.Module):
    """Votes, and routing by agreement among them (procedure 1)."""

    def __init__(
        self, inputs: int, input_dim: int, classes: int, dim: int, iterations: int = 3
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.weight = nn.Parameter(0.1 * torch.randn(inputs, classes, dim, input_dim))

    def forward(self, capsules: Tensor) -> Tensor:
        """Digit capsules `[B, J, D]` of primary capsules `[B, I, P]`."""
        votes = torch.einsum("ijdp,bip->bijd", self.weight, capsules)
        logits = votes.new_zeros(votes.shape[:3])
        for iteration in range(self.iterations):
            coupling = logits.softmax(dim=2)  # over the parents
            poses = squash(torch.einsum("bij,bijd->bjd", coupling, votes))
            if iteration < self.iterations - 1:
                logits = logits + torch.einsum("bijd,bjd->bij", votes, poses)
        return poses


def squash(s: Tensor) -> Tensor:
    """Equation 1 along the last axis."""
    square = (s * s).sum(dim=-1, keepdim=True)
    return square / (1 + square) * s / torch.sqrt(square + TINY)


def margin_loss(lengths: Tensor, labels: Tensor) -> Tensor:
    """Equation 4, summed over the classes, averaged over the batch."""
    present = F.one_hot(labels, lengths.shape[1]).to(lengths.dtype)
    too_short = F.relu(0.9 - lengths) ** 2
    too_long = F.relu(lengths - 0.1) ** 2
    return (present * too_short + 0.5 * (1 - present) * too_long).sum(dim=1).mean()


def total_loss(lengths: Tensor, reconstruction: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Margin loss plus 0.0005 times the squared error summed over an image's pixels."""
    error = ((reconstruction - images) ** 2).flatten(1).sum(dim=1).mean()
    return margin_loss(lengths, labels) + RECONSTRUCTION_WEIGHT * error


def make_optimizer(net: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    """Adam with PyTorch's defaults, as in the paper; `fused` is the tuned textbook's."""
    return torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=fused or None)


def train_step(
    net: TextbookCapsNet,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    bf16: bool = False,
) -> Tensor:
    """One step of Adam on a batch; returns its loss. `bf16` puts plain autocast around the net."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        lengths, reconstruction = net(images, labels)
    loss = total_loss(lengths.float(), reconstruction.float(), images, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()
