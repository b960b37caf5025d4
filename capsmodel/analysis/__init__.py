"""Looking into a trained model: what it recognises, draws, takes apart and routes where.

    from capsmodel.analysis import perturb, predict, reconstruct, segment, trace_routing

Each function works on any model, on the device of its weights, in evaluation mode and without
gradients; afterwards every module is in the mode in which it was. Images are floating point
`[N, C, H, W]` in [0, 1] on any device and go through the model in batches, so that thousands fit;
results stand on the model's device.
"""

from capsmodel.analysis.perturbation import OFFSETS, perturb
from capsmodel.analysis.prediction import Prediction, predict, reconstruct
from capsmodel.analysis.segmentation import COLOURS, Segmentation, in_colours, segment
from capsmodel.analysis.tracing import trace_routing

__all__ = [
    "COLOURS",
    "OFFSETS",
    "Prediction",
    "Segmentation",
    "in_colours",
    "perturb",
    "predict",
    "reconstruct",
    "segment",
    "trace_routing",
]
