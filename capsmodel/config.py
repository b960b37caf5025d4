"""Every setting of the library, as strict and bounded Pydantic models. Imports no torch.

The tables of open sets (`ROUTINGS`, `LOSSES`, ...) stand at the end of each section: adding a
member is its configuration and one line here, and one file for its implementation.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from capsmodel.open_set import Member, OpenSet

MAX_ROUTING_WEIGHTS = 100_000_000


class Config(BaseModel):
    """Base of every configuration: strict types, no unknown fields, no NaN, immutable."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


# ---------------------------------------------------------------------------------- routing


class RoutingConfig(Config):
    """Base of the routing algorithms' settings."""

    type: str


class DynamicRoutingConfig(RoutingConfig):
    """Routing by agreement (Sabour et al. 2017, procedure 1)."""

    type: Literal["dynamic"] = "dynamic"
    iterations: int = Field(default=3, ge=1, le=10)
    """Passes of routing by agreement; the paper uses 3."""
    detach: bool = False
    """Stop the gradient through the coupling coefficients of all passes but the last."""


class UniformRoutingConfig(RoutingConfig):
    """No routing: every capsule sends 1/J of itself to each of the J parents."""

    type: Literal["uniform"] = "uniform"


ROUTINGS = OpenSet(
    "capsmodel.routings",
    default="dynamic",
    members={
        "dynamic": Member(DynamicRoutingConfig, "capsmodel.routing.dynamic:DynamicRouting"),
        "uniform": Member(UniformRoutingConfig, "capsmodel.routing.uniform:UniformRouting"),
    },
)

# ------------------------------------------------------------------------------------ model


class DecoderConfig(Config):
    """The reconstruction network of section 4.1: fully connected, ReLU, sigmoid at the end."""

    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...],
        Field(min_length=1, max_length=6, strict=False),
    ] = (512, 1024)
    """Units of each hidden layer, in order."""


class ModelConfig(Config):
    """Base of the models' settings."""

    type: str
    image_shape: Annotated[
        tuple[
            Annotated[int, Field(ge=1, le=16)],
            Annotated[int, Field(ge=5, le=512)],
            Annotated[int, Field(ge=5, le=512)],
        ],
        Field(strict=False),
    ] = (1, 28, 28)
    """Channels, height and width of an image, in pixels."""
    classes: int = Field(default=10, ge=2, le=1000)
    """Number of classes J, one output capsule each."""


class CapsNetConfig(ModelConfig):
    """The architecture of section 4 (figure 1); the defaults are the paper's MNIST net."""

    type: Literal["capsnet"] = "capsnet"
    conv_channels: int = Field(default=256, ge=1, le=2048)
    """Kernels of the first convolution."""
    conv_kernel: int = Field(default=9, ge=1, le=31)
    """Side of the first convolution's kernel, in pixels."""
    conv_stride: int = Field(default=1, ge=1, le=8)
    """Stride of the first convolution."""
    primary_types: int = Field(default=32, ge=1, le=256)
    """Primary capsule types: at every position of the grid one capsule of each type."""
    primary_dim: int = Field(default=8, ge=1, le=128)
    """Dimensions of a primary capsule."""
    primary_kernel: int = Field(default=9, ge=1, le=31)
    """Side of the primary capsules' kernel, in pixels of the first feature map."""
    primary_stride: int = Field(default=2, ge=1, le=8)
    """Stride of the primary capsules' convolution."""
    class_dim: int = Field(default=16, ge=1, le=256)
    """Dimensions D of a class capsule (the paper's DigitCaps)."""
    routing: Annotated[RoutingConfig, ROUTINGS] = DynamicRoutingConfig()
    decoder: DecoderConfig | None = DecoderConfig()
    """None trains without reconstruction."""

    @property
    def primary_grid(self) -> tuple[int, int]:
        """Height and width of the grid of primary capsules."""
        _, height, width = self.image_shape
        return self._grid_side(height), self._grid_side(width)

    @property
    def primary_capsules(self) -> int:
        """Number I of primary capsules: types x grid height x grid width."""
        rows, columns = self.primary_grid
        return self.primary_types * rows * columns

    def _grid_side(self, pixels: int) -> int:
        features = (pixels - self.conv_kernel) // self.conv_stride + 1
        if pixels < self.conv_kernel or features < self.primary_kernel:
            return 0
        return (features - self.primary_kernel) // self.primary_stride + 1

    @model_validator(mode="after")
    def _image_fits(self) -> Self:
        if min(self.primary_grid) < 1:
            _, height, width = self.image_shape
            smallest = self.conv_kernel + self.conv_stride * (self.primary_kernel - 1)
            raise ValueError(
                f"an image of {height}x{width} pixels is too small: conv_kernel "
                f"{self.conv_kernel} + conv_stride {self.conv_stride} * (primary_kernel "
                f"{self.primary_kernel} - 1) = {smallest} pixels a side are needed; "
                "use a larger image, smaller kernels or a smaller conv_stride"
            )
        weights = self.primary_capsules * self.primary_dim * self.classes * self.class_dim
        if weights > MAX_ROUTING_WEIGHTS:
            raise ValueError(
                f"{self.primary_capsules} primary capsules x {self.primary_dim} dimensions x "
                f"{self.classes} classes x {self.class_dim} dimensions = {weights:,} routing "
                f"weights, at most {MAX_ROUTING_WEIGHTS:,}; use fewer primary_types, a larger "
                "primary_stride or fewer dimensions"
            )
        return self


MODELS = OpenSet(
    "capsmodel.models",
    default="capsnet",
    members={"capsnet": Member(CapsNetConfig, "capsmodel.model:CapsNet")},
)

# ------------------------------------------------------------------------------------- loss


class LossConfig(Config):
    """Base of the losses' settings."""

    type: str
    reconstruction_weight: float = Field(default=0.0005, ge=0, le=10)
    """Weight of the reconstruction error SUMMED over an image's pixels (section 4.1)."""


class MarginLossConfig(LossConfig):
    """Margin loss (section 3, equation 4), summed over classes, averaged over the batch."""

    type: Literal["margin"] = "margin"
    m_plus: float = Field(default=0.9, gt=0, le=1)
    """The capsule of a class that is present should be at least this long."""
    m_minus: float = Field(default=0.1, ge=0, lt=1)
    """The capsule of a class that is absent should be at most this long."""
    lambda_: float = Field(default=0.5, ge=0, le=10, alias="lambda")
    """Weight of the absent classes."""

    @model_validator(mode="after")
    def _margins_in_order(self) -> Self:
        if self.m_minus >= self.m_plus:
            raise ValueError(f"m_minus {self.m_minus} must be smaller than m_plus {self.m_plus}")
        return self


LOSSES = OpenSet(
    "capsmodel.losses",
    default="margin",
    members={"margin": Member(MarginLossConfig, "capsmodel.losses:MarginLoss")},
)

# --------------------------------------------------------------------------------- data sets


class DatasetConfig(Config):
    """Base of the data sets' settings."""

    image_shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int]
    type: str
    validation_fraction: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the training set held out, by seed, to choose the best weights; 0 holds out none."""
    max_shift: int = Field(default=2, ge=0, le=8)
    """Augmentation: shifts of up to so many pixels each way, filled with zeros; 0 turns it off."""


class MnistConfig(DatasetConfig):
    """The whole of MNIST: 60,000 training and 10,000 test images, 28x28."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["mnist"] = "mnist"


class Mnist5kConfig(DatasetConfig):
    """5,000 real MNIST digits that a package carries: 4,000 to learn from, 1,000 to test."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["mnist-5k"] = "mnist-5k"


DATASETS = OpenSet(
    "capsmodel.datasets",
    default="mnist",
    members={
        "mnist": Member(MnistConfig, "capsmodel.datasets.mnist:load"),
        "mnist-5k": Member(Mnist5kConfig, "capsmodel.datasets.mnist_5k:load"),
    },
)

# ---------------------------------------------------------------------------------- training


class OptimizerConfig(Config):
    """Adam (Kingma and Ba, 2015)."""

    type: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """The schedule multiplies it."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0, le=1)


class ScheduleConfig(Config):
    """Base of the learning-rate schedules' settings."""

    type: str
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the learning rate rises linearly from 0."""


class ConstantScheduleConfig(ScheduleConfig):
    """The learning rate stays as it is."""

    type: Literal["constant"] = "constant"


class ExponentialScheduleConfig(ScheduleConfig):
    """`decay_rate ^ (step / decay_steps)`, continuous, with a floor: the authors' recipe."""

    type: Literal["exponential"] = "exponential"
    decay_rate: float = Field(default=0.96, gt=0, le=1)
    decay_steps: int = Field(default=2000, ge=1, le=100_000_000)
    floor: float = Field(default=1e-3, ge=0, le=1)
    """Smallest factor; 1e-3 of a learning rate of 1e-3 is the authors' 1e-6."""


class CosineScheduleConfig(ScheduleConfig):
    """Half a cosine from 1 to `floor` over the whole of the training."""

    type: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0, le=1)


SCHEDULES = OpenSet(
    "capsmodel.schedules",
    default="constant",
    members={
        "constant": Member(ConstantScheduleConfig, "capsmodel.schedules:constant"),
        "exponential": Member(ExponentialScheduleConfig, "capsmodel.schedules:exponential"),
        "cosine": Member(CosineScheduleConfig, "capsmodel.schedules:cosine"),
    },
)


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
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, SCHEDULES] = ConstantScheduleConfig()
    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=128, ge=1, le=8192)
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 rounds the products of convolutions and decoder; capsules and losses stay in fp32."""
    early_stopping: EarlyStoppingConfig | None = None

    @model_validator(mode="after")
    def _model_matches_dataset(self) -> Self:
        if tuple(self.model.image_shape) != tuple(self.dataset.image_shape):
            raise ValueError(
                f"model.image_shape {list(self.model.image_shape)} differs from that of the data "
                f"set {self.dataset.type!r}, {list(self.dataset.image_shape)}"
            )
        if self.model.classes != self.dataset.classes:
            raise ValueError(
                f"model.classes {self.model.classes} differs from the {self.dataset.classes} "
                f"classes of the data set {self.dataset.type!r}"
            )
        if self.early_stopping and self.dataset.validation_fraction == 0:
            raise ValueError(
                "early_stopping needs a validation part: dataset.validation_fraction is 0"
            )
        return self
