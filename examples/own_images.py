"""Train on images of one's own, in a folder: `python examples/own_images.py`.

Draws circles, squares and triangles in all colours as PNG files, one folder a class, as one may
have collected photographs, and learns to tell them apart. Writes `shapes/` and `shapes.ppm`: some
images above their reconstructions. Needs Pillow, which comes with the extra `data`:
`pip install 'capsnet-training-service[data]'`.
"""

from pathlib import Path

import numpy as np
import torch
from pictures import write_grid
from PIL import Image, ImageDraw

from capsmodel import CapsNetConfig, Trainer, TrainingConfig
from capsmodel.analysis import reconstruct
from capsmodel.config import DecoderConfig, HuggingFaceConfig, MarginLossConfig, OptimizerConfig

FOLDER = Path("shapes")
PICTURE = Path("shapes.ppm")
SIDE = 24
PER_CLASS = 200


def draw_shape(name: str, random: np.random.Generator) -> Image.Image:
    """A shape of any colour, size and place on a dark and noisy ground."""
    ground = random.integers(0, 64, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    colour = tuple(random.integers(96, 256, 3).tolist())
    radius = int(random.integers(6, 10))
    x, y = random.integers(radius, SIDE - radius, 2).tolist()
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        pen.ellipse(box, colour)
    elif name == "square":
        pen.rectangle(box, colour)
    else:
        pen.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], colour)
    return image


def draw_images() -> None:
    """Fill the folder: `shapes/<class>/<number>.png`."""
    random = np.random.default_rng(0)
    for name in ("circle", "square", "triangle"):
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(PER_CLASS):
            draw_shape(name, random).save(folder / f"{number:03}.png")


draw_images()
config = TrainingConfig(
    # There is no folder of test images, so a fifth of every class is held out for the test.
    dataset=HuggingFaceConfig(path=str(FOLDER.absolute()), image_shape=(3, SIDE, SIDE), classes=3),
    model=CapsNetConfig(  # takes the shape of the images and the number of classes from the data
        conv_channels=32,
        conv_kernel=5,
        conv_stride=2,
        primary_types=8,
        primary_kernel=5,
        decoder=DecoderConfig(hidden=(128, 256)),
    ),
    loss=MarginLossConfig(reconstruction_weight=0.005),
    optimizer=OptimizerConfig(learning_rate=5e-3),
    epochs=10,
    batch_size=16,
)
trainer = Trainer(config)
trainer.fit()
test = trainer.evaluate("test")
print(f"test accuracy {test.accuracy:.1%} of {test.images} images")
images = trainer.examples("test", 12).as_pixels().images
write_grid(PICTURE, torch.stack([images, reconstruct(trainer.model, images)]))
print(f"wrote {PICTURE}")
