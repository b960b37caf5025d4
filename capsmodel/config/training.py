"""Settings of one training: all that decides what a `Trainer` computes."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from capsmodel.config.base import Config
from capsmodel.config.dataset import DATASETS, DatasetConfig, MnistConfig
from capsmodel.config.loss import LOSSES, CrossEntropyLossConfig, LossConfig, MarginLossConfig
from capsmodel.config.model import MODELS, CapsNetConfig, CnnConfig, ModelConfig
from capsmodel.config.schedule import SCHEDULES, ConstantScheduleConfig, ScheduleConfig

FROM_DATASET = ("image_shape", "classes", "targets")
"""What a model takes over from the data set where its settings are silent."""


class OptimizerConfig(Config):
    """Adam (Kingma and Ba, 2015)."""

    type: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, le=1e6)
    """The schedule multiplies it."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    max_gradient_norm: float | None = Field(default=None, gt=0, le=1e6)
    """Gradients are scaled down to this length (L2, over all weights together); None clips not."""


class EarlyStoppingConfig(Config):
    """Stop when the validation accuracy has not improved for a while."""

    patience: int = Field(ge=1, le=1000)
    """Epochs without a better validation accuracy."""


class TrainingConfig(Config):
    """One training: what the `Trainer` needs, and nothing of queues or clusters."""

    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Decides initial weights, the validation part, shuffles and shifts."""
    dataset: Annotated[DatasetConfig, DATASETS] = MnistConfig()
    model: Annotated[ModelConfig, MODELS] = CapsNetConfig()
    loss: Annotated[LossConfig, LOSSES] = MarginLossConfig()
    """Margin by default; cross-entropy where the model is a CNN."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, SCHEDULES] = ConstantScheduleConfig()
    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=128, ge=1, le=8192)
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 rounds the products of convolutions and decoder; capsules and losses stay in fp32."""
    deterministic: bool = False
    """Only algorithms that give the same bits at every run; costs speed on a GPU, none on a CPU."""
    early_stopping: EarlyStoppingConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _loss_of_a_cnn(cls, data: Any) -> Any:
        """A CNN has no capsules to which margins apply: its loss is cross-entropy, unless said."""
        if not isinstance(data, dict):
            return data
        model, loss = data.get("model"), data.get("loss", {})
        kind = model.get("type") if isinstance(model, dict) else getattr(model, "type", None)
        if kind != CnnConfig.model_fields["type"].default:
            return data
        if not isinstance(loss, dict) or "type" in loss:
            return data
        cross_entropy = CrossEntropyLossConfig.model_fields["type"].default
        return {**data, "loss": {"type": cross_entropy, **loss}}

    @field_validator("model", mode="wrap")
    @classmethod
    def _follows_dataset(cls, value: Any, validate: Any, info: ValidationInfo) -> Any:
        """Fill in what the data set states and the model leaves out; refuse what contradicts."""
        dataset = info.data.get("dataset")
        if dataset is None:  # it was refused: that is the error to show
            return validate(value)
        known = {name: getattr(dataset, name) for name in FROM_DATASET}
        if isinstance(value, dict):
            value = {**known, **value}
        elif isinstance(value, ModelConfig):
            given = {name: getattr(value, name) for name in value.model_fields_set}
            value = type(value)(**{**known, **given})
        model = validate(value)
        for name, stated in known.items():
            if getattr(model, name) != stated:
                raise ValueError(
                    f"{name} {_plain(getattr(model, name))} differs from that of the data set "
                    f"{dataset.type!r}, {_plain(stated)}: leave it out, and the data set gives it"
                )
        return model

    @field_validator("early_stopping")
    @classmethod
    def _early_stopping_can_see(
        cls, value: EarlyStoppingConfig | None, info: ValidationInfo
    ) -> EarlyStoppingConfig | None:
        dataset = info.data.get("dataset")
        if value and dataset and dataset.validation_fraction == 0:
            raise ValueError(
                "early_stopping needs a validation part: dataset.validation_fraction is 0"
            )
        return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
