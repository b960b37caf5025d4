"""The margin loss (section 3, equation 4)."""

from torch import Tensor

from capsmodel.config import MarginLossConfig
from capsmodel.losses import Loss, present_classes
from capsmodel.model import ModelOutput


class MarginLoss(Loss):
    """Margin loss of the capsules' lengths."""

    def __init__(self, config: MarginLossConfig) -> None:
        super().__init__(config)
        self.config = config

    def classification(self, output: ModelOutput, labels: Tensor) -> Tensor:
        """The margin loss, scaled as the settings say."""
        config = self.config
        loss = margin_loss(output.lengths, labels, config.m_plus, config.m_minus, config.lambda_)
        if config.scale == "half-mean":
            return loss / (2 * output.lengths.shape[1])
        return loss


def margin_loss(
    lengths: Tensor,
    labels: Tensor,
    m_plus: float = 0.9,
    m_minus: float = 0.1,
    lambda_: float = 0.5,
) -> Tensor:
    """Margin loss (equation 4), summed over classes, averaged over the batch.

    `T max(0, m+ - |v|)^2 + lambda (1 - T) max(0, |v| - m-)^2` for every class.

    Args:
        lengths: Lengths of the class capsules, `[B, J]`.
        labels: int64 `[B]` in 0 .. J-1, or `[B, T]` where T classes are present.
        m_plus: Length that the capsule of a class present should reach.
        m_minus: Length that the capsules of the other classes should not exceed.
        lambda_: Weight of the absent classes.

    Returns:
        A scalar.
    """
    present = present_classes(labels, lengths.shape[1]).to(lengths.dtype)
    too_short = (m_plus - lengths).relu().square()
    too_long = (lengths - m_minus).relu().square()
    per_class = present * too_short + lambda_ * (1 - present) * too_long
    return per_class.sum(dim=1).mean()
