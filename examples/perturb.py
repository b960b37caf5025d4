"""What the dimensions of a capsule stand for (section 5.1): `python examples/perturb.py`.

One number of a capsule is changed at a time, and what it now draws is looked at. Uses the net
that `train.py` left in the working folder, or else trains it first. Writes `perturbations.pgm`: a
row for each of the 16 dimensions; the columns add -0.25 to 0.25, the middle one nothing.
"""

from pathlib import Path

from pictures import write_grid
from train import trained

from capsmodel.analysis import OFFSETS, perturb

PICTURE = Path("perturbations.pgm")
DIGIT = 3

trainer = trained()
examples = trainer.examples("test", 10).as_pixels()
chosen = examples.labels == DIGIT
drawings = perturb(trainer.model, examples.images[chosen], examples.labels[chosen])[0]
write_grid(PICTURE, drawings)  # [16, 11, 1, 28, 28]
for dim, row in enumerate(drawings):
    change = (row[-1] - row[0]).abs().sum()  # black to white counts 1
    print(
        f"dimension {dim + 1:2}: {OFFSETS[0]} to {OFFSETS[-1]} changes the drawing by {change:.1f}"
    )
print(f"wrote {PICTURE}")
