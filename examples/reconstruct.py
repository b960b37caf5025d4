"""Draw digits again from their capsules (section 4.1): `python examples/reconstruct.py`.

The decoder sees the 16 numbers of one capsule and nothing of the image. Uses the net that
`train.py` left in the working folder, or else trains it first. Writes `reconstructions.pgm`: ten
digits above what the longest capsule of each draws.
"""

from pathlib import Path

import torch
from pictures import write_grid
from train import trained

from capsmodel.analysis import predict, reconstruct

PICTURE = Path("reconstructions.pgm")

trainer = trained()
digits, labels, _ = trainer.examples("test", 10).as_pixels()  # one of each class
prediction = predict(trainer.model, digits)
drawings = reconstruct(trainer.model, digits)  # [10, 1, 28, 28], each from its longest capsule
errors = (drawings - digits).square().flatten(1).sum(dim=1)
for label, predicted, lengths, error in zip(
    labels.tolist(), prediction.classes.tolist(), prediction.lengths, errors, strict=True
):
    print(
        f"a {label}: recognised as {predicted} with a capsule of length {lengths.max():.2f}, "
        f"squared error of the drawing {error:.1f}"
    )
write_grid(PICTURE, torch.stack([digits, drawings]))
print(f"wrote {PICTURE}")
