"""Settings: what the data set gives the model, what contradicts, what the presets say."""

import pytest
from pydantic import ValidationError

from capsmodel import presets
from capsmodel.config import (
    CapsNetConfig,
    CnnConfig,
    DecoderConfig,
    ExpandedMnistConfig,
    HuggingFaceConfig,
    Mnist5kConfig,
    MultiMnistConfig,
    TrainingConfig,
)


@pytest.mark.parametrize(
    ("dataset", "shape", "classes", "targets"),
    [
        (Mnist5kConfig(), (1, 28, 28), 10, 1),
        (MultiMnistConfig(), (1, 36, 36), 10, 2),
        (ExpandedMnistConfig(), (1, 40, 40), 10, 1),
        (HuggingFaceConfig(path="birds", image_shape=(3, 32, 24), classes=7), (3, 32, 24), 7, 1),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_the_model_takes_over_what_the_data_set_states(dataset, shape, classes, targets) -> None:
    config = TrainingConfig(dataset=dataset, model=CapsNetConfig(primary_types=4))
    model = config.model
    assert (model.image_shape, model.classes, model.targets) == (shape, classes, targets)
    assert model.primary_types == 4
    from_document = TrainingConfig.model_validate(
        {"dataset": dataset.model_dump(), "model": {"primary_types": 4}}
    )
    assert from_document == config
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainingConfig(dataset=dataset).model.image_shape == shape


def test_a_model_that_contradicts_its_data_set_is_refused_at_the_model() -> None:
    with pytest.raises(ValidationError) as refused:
        TrainingConfig.model_validate(
            {"dataset": {"type": "multimnist"}, "model": {"image_shape": [1, 28, 28]}}
        )
    (error,) = refused.value.errors()
    assert error["loc"] == ("model",)
    assert "image_shape [1, 28, 28] differs" in error["msg"]
    assert "[1, 36, 36]: leave it out" in error["msg"]


def test_a_set_of_ones_own_images_is_refused_where_it_can_not_be_loaded() -> None:
    with pytest.raises(ValidationError, match="has 2 channels"):
        HuggingFaceConfig(path="birds", image_shape=(2, 32, 32), classes=7)
    with pytest.raises(ValidationError, match="test_split and train_split are both 'train'"):
        HuggingFaceConfig(path="birds", image_shape=(1, 32, 32), classes=7, test_split="train")


def test_a_cnn_learns_by_cross_entropy_unless_said_otherwise() -> None:
    assert TrainingConfig(model=CnnConfig()).loss.type == "cross-entropy"
    assert TrainingConfig.model_validate({"model": {"type": "cnn"}}).loss.type == "cross-entropy"
    assert TrainingConfig().loss.type == "margin"
    weighed = TrainingConfig.model_validate(
        {"model": {"type": "cnn"}, "loss": {"reconstruction_weight": 0.001}}
    )
    assert weighed.loss.type == "cross-entropy"
    chosen = TrainingConfig.model_validate({"model": {"type": "cnn"}, "loss": {"type": "margin"}})
    assert chosen.loss.type == "margin"


def test_each_kernel_belongs_to_a_convolution() -> None:
    with pytest.raises(ValidationError, match=r"kernels \[3\] and channels \[8, 8\] differ"):
        CnnConfig(channels=(8, 8), kernels=(3,))


def test_a_net_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(
        ValidationError,
        match=r"fully connected layer: 65536 units in x 5760 units out = 377,487,360",
    ):
        CnnConfig(channels=(256,), kernels=(5,), hidden=(5760,), image_shape=(1, 16, 16))
    with pytest.raises(ValidationError, match=r"routing: .* weights, at most 100,000,000"):
        CapsNetConfig(image_shape=(1, 128, 128), classes=100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"conv_channels": 2048, "primary_types": 256, "primary_dim": 128},
            "primary capsules: 2048",
        ),
        ({"image_shape": (16, 512, 512), "primary_stride": 8, "conv_stride": 8}, "decoder: "),
    ],
)
def test_no_layer_may_be_too_large(settings: dict[str, object], message: str) -> None:
    decoder = DecoderConfig(hidden=(8192, 8192))
    with pytest.raises(ValidationError, match=message):
        CapsNetConfig(**settings, decoder=decoder)
    with pytest.raises(ValidationError, match="a convolution: 2048 channels in x 961"):
        CnnConfig(channels=(2048, 2048), kernels=(31, 31), pool=4)


def test_early_stopping_without_a_validation_part_is_refused_at_its_place() -> None:
    with pytest.raises(ValidationError) as refused:
        TrainingConfig.model_validate(
            {"dataset": {"validation_fraction": 0}, "early_stopping": {"patience": 2}}
        )
    assert refused.value.errors()[0]["loc"] == ("early_stopping",)


def test_the_presets_differ_where_paper_and_code_differ_and_nowhere_else() -> None:
    paper, official = presets.PAPER.model_dump(), presets.OFFICIAL.model_dump()
    model = {name for name in paper["model"] if paper["model"][name] != official["model"][name]}
    assert model == {"primary_coupling", "class_bias", "initialization"}
    loss = {name for name in paper["loss"] if paper["loss"][name] != official["loss"][name]}
    assert loss == {"scale"}
    rest = set(paper) - {"model", "loss"}
    assert {name: paper[name] for name in rest} == {name: official[name] for name in rest}


def test_on_multimnist_the_learning_rate_falls_ten_times_more_slowly() -> None:
    slowly = 10 * presets.PAPER.schedule.decay_steps
    assert presets.MULTIMNIST.schedule.decay_steps == slowly
    assert presets.MULTIMNIST_BASELINE.schedule.decay_steps == slowly
    assert presets.BASELINE.schedule == presets.PAPER.schedule


def test_the_baselines_learn_by_cross_entropy_and_the_nets_by_the_margin_loss() -> None:
    for baseline in (presets.BASELINE, presets.MULTIMNIST_BASELINE):
        assert (baseline.model.type, baseline.loss.type) == ("cnn", "cross-entropy")
    for net in (presets.PAPER, presets.OFFICIAL, presets.MULTIMNIST):
        assert (net.model.type, net.loss.type) == ("capsnet", "margin")
