"""Cross-entropy: the loss of the paper's CNN baselines, and of capsules by their lengths."""

from torch import Tensor
from torch.nn import functional

from capsmodel.config import CrossEntropyLossConfig
from capsmodel.losses import Loss, present_classes
from capsmodel.model import ModelOutput


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy for one target (section 5), sigmoid's for several (section 6)."""

    def __init__(self, config: CrossEntropyLossConfig) -> None:
        super().__init__(config)
        self.scale = config.scale

    def classification(self, output: ModelOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the model's logits, or of its capsules' lengths as `scale` says."""
        logits = output.logits
        if logits is None:
            logits = self.scale * (output.lengths - 0.5)
        return cross_entropy(logits, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, averaged over the batch.

    Args:
        logits: `[B, J]`.
        labels: int64 `[B]`: softmax over the classes; or `[B, T]`: a sigmoid for each class, the
            classes' losses summed.

    Returns:
        A scalar.
    """
    if labels.dim() == 1:
        return functional.cross_entropy(logits, labels)
    present = present_classes(labels, logits.shape[1]).to(logits.dtype)
    per_class = functional.binary_cross_entropy_with_logits(logits, present, reduction="none")
    return per_class.sum(dim=1).mean()
