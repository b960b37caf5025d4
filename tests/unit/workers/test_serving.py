"""The model as MLflow serves it gives what the net gives."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from capsmodel.config import CapsNetConfig, DecoderConfig
from capsmodel.model import build_model
from workers.serving import CONFIG, WEIGHTS, save_weights

pytestmark = pytest.mark.slow  # imports mlflow

NET = CapsNetConfig(
    conv_channels=4,
    conv_stride=2,
    primary_types=2,
    primary_dim=4,
    primary_kernel=5,
    primary_stride=3,
    class_dim=6,
    decoder=DecoderConfig(hidden=(8,)),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("draws", [True, False])
def test_a_served_model_gives_what_the_net_gives(tmp_path: Path, draws: bool) -> None:
    from workers.pyfunc_model import CapsNetModel

    config = NET if draws else NET.model_copy(update={"decoder": None})
    torch.manual_seed(1)
    net = build_model(config).eval()
    save_weights(net, config, tmp_path / "model")
    files = {"weights": tmp_path / "model" / WEIGHTS, "config": tmp_path / "model" / CONFIG}
    assert sorted((tmp_path / "model").iterdir()) == sorted(files.values()), "no pickle"

    served = CapsNetModel()
    context = SimpleNamespace(artifacts={name: str(path) for name, path in files.items()})
    served.load_context(context)
    images = np.random.default_rng(1).random((5, 1, 28, 28))
    answer = served.predict(context, images)

    with torch.no_grad():
        expected = net(torch.from_numpy(images.astype(np.float32)))
    assert answer["classes"].tolist() == expected.lengths.argmax(dim=1).tolist()
    assert np.array_equal(answer["lengths"], expected.lengths.numpy())
    assert np.array_equal(answer["poses"], expected.poses.numpy())
    assert ("reconstruction" in answer) == draws
    if expected.reconstruction is not None:
        assert np.array_equal(answer["reconstruction"], expected.reconstruction.numpy())


def test_the_signature_names_every_output() -> None:
    from workers.serving import _signature

    outputs = {spec.name: spec.shape for spec in _signature(NET).outputs}
    assert outputs == {
        "classes": (-1,),
        "lengths": (-1, 10),
        "poses": (-1, 10, 6),
        "reconstruction": (-1, 1, 28, 28),
    }
