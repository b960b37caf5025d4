"""The model as MLflow serves it gives what the net gives."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from capsmodel.config import CnnConfig
from capsmodel.model import build_model, predicted_classes
from support.nets import TINY_NET
from workers.serving import CONFIG, WEIGHTS, save_weights

pytestmark = pytest.mark.slow  # imports mlflow

MODELS = {
    "capsnet": TINY_NET,
    "without decoder": TINY_NET.model_copy(update={"decoder": None}),
    "two targets": TINY_NET.model_copy(update={"targets": 2}),
    "cnn": CnnConfig(channels=(3,), kernels=(5,), pool=4, hidden=(6,)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MODELS)
def test_a_served_model_gives_what_the_net_gives(tmp_path: Path, name: str) -> None:
    from workers.pyfunc_model import CapsNetModel

    config = MODELS[name]
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
        output = net(torch.from_numpy(images.astype(np.float32)))
    expected = {
        "classes": predicted_classes(output.lengths, config.targets),
        "lengths": output.lengths,
        "poses": output.poses,
        "reconstruction": output.reconstruction,
    }
    expected = {name: value for name, value in expected.items() if value is not None}
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(answer[name], value.numpy())


@pytest.mark.parametrize("name", MODELS)
def test_the_signature_names_every_output(name: str) -> None:
    from workers.serving import _signature

    config = MODELS[name]
    output = build_model(config).eval()(torch.rand(3, 1, 28, 28))
    expected = {
        "classes": predicted_classes(output.lengths, config.targets),
        "lengths": output.lengths,
        "poses": output.poses,
        "reconstruction": output.reconstruction,
    }
    shapes = {n: (-1, *value.shape[1:]) for n, value in expected.items() if value is not None}
    assert {spec.name: spec.shape for spec in _signature(config).outputs} == shapes
