"""All that a worker can run, as Pydantic models. Of the library it imports settings alone."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from capsmodel import presets
from capsmodel.config import (
    CapsNetConfig,
    Config,
    CosineScheduleConfig,
    DecoderConfig,
    Mnist5kConfig,
    MultiMnistConfig,
    OptimizerConfig,
    TrainingConfig,
)
from capsmodel.open_set import Member, OpenSet

SCHEMA_VERSION: Literal[1] = 1

Name = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._:+-]*$")
]


def _free_label(key: str) -> str:
    if key.startswith(("mlflow.", "caps.")):
        raise ValueError(f"label {key!r}: the prefixes 'mlflow.' and 'caps.' are taken")
    return key


def _below_storage(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError(f"path {path!r} must stay below CAPS_STORAGE: no '..'")
    return path


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("name each checkpoint once")
    return names


LabelKey = Annotated[
    str,
    Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
    AfterValidator(_free_label),
]
StoragePath = Annotated[
    str,
    Field(max_length=500, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*\.pt$"),
    AfterValidator(_below_storage),
]
AcceleratorType = Annotated[str, Field(max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
LabelValue = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class ResourcesConfig(Config):
    """What a job reserves on the cluster."""

    workers: int = Field(default=1, ge=1, le=64)
    """Training processes, perhaps on several nodes; each learns from its share of every batch."""
    cpus_per_worker: int = Field(default=2, ge=1, le=512)
    """CPU cores of each worker; PyTorch uses as many threads."""
    gpus_per_worker: float = Field(default=0, ge=0, le=1)
    """GPUs of each worker; a fraction lets jobs or trials share one."""
    accelerator_type: AcceleratorType | None = None
    """Only on nodes with this kind of accelerator, by Ray's name: `H100`, `A100`, `T4`."""

    @model_validator(mode="after")
    def _workers_share_no_gpu(self) -> Self:
        if self.workers > 1 and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g}, but {self.workers} workers of one "
                "job need a GPU each (NCCL): write 1, or workers: 1"
            )
        return self


class ArtifactConfig(Config):
    """Base of the settings of the pictures and reports that a training job leaves."""

    type: str


class ReconstructionSheetConfig(ArtifactConfig):
    """Images above their reconstructions, in columns (l, p, r); failures stand at the right."""

    type: Literal["reconstruction-sheet"] = "reconstruction-sheet"
    every_epochs: int = Field(default=1, ge=1, le=10_000)
    """A sheet of the validation part after every so many epochs; the last is of the test set."""
    columns: int = Field(default=14, ge=2, le=40)
    """Images on the sheet, failures included."""


class PerturbationSheetConfig(ArtifactConfig):
    """What each dimension of a capsule draws (figure 4): one row a dimension, eleven columns."""

    type: Literal["perturbation-sheet"] = "perturbation-sheet"
    every_epochs: int | None = Field(default=None, ge=1, le=10_000)
    """A sheet after every so many epochs; None makes it at the end alone."""
    largest: float = Field(default=0.25, gt=0, le=1)
    """The columns go from minus this to plus this, added to the dimension."""


class OverlapSheetConfig(ArtifactConfig):
    """Overlapping digits told apart (figure 5): input, and both reconstructions in two colours."""

    type: Literal["overlap-sheet"] = "overlap-sheet"
    every_epochs: int = Field(default=1, ge=1, le=10_000)
    """A sheet of the validation part after every so many epochs; the last is of the test set."""
    columns: int = Field(default=16, ge=2, le=40)
    """Images on the sheet, failures included."""


ARTIFACTS = OpenSet(
    "workers.artifacts",
    default="reconstruction-sheet",
    members={
        "reconstruction-sheet": Member(
            ReconstructionSheetConfig,
            "workers.artifacts.reconstruction_sheet:ReconstructionSheet",
        ),
        "perturbation-sheet": Member(
            PerturbationSheetConfig, "workers.artifacts.perturbation_sheet:PerturbationSheet"
        ),
        "overlap-sheet": Member(OverlapSheetConfig, "workers.artifacts.overlap_sheet:OverlapSheet"),
    },
)


class InitFrom(Config):
    """Where the initial weights come from: another job, or a checkpoint file in the storage."""

    job: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")
    """A job that has ended with a checkpoint."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of that job's checkpoints."""
    path: StoragePath | None = None
    """A checkpoint's path below CAPS_STORAGE, in place of `job`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.job is None) == (self.path is None):
            raise ValueError("give either `job` or `path`")
        return self


class TrainSpec(TrainingConfig):
    """One training job, as it is submitted: the training and all that surrounds it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name = "capsnet"
    """Name of the job and of its MLflow run."""
    description: str = Field(default="", max_length=4000)
    """Markdown; stands in the MLflow run's note."""
    experiment: Name = "capsnet"
    """MLflow experiment."""
    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=32)
    """Free labels; jobs are filtered by them and the MLflow run carries them as tags."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Larger starts earlier; equal ones by age."""
    max_runtime_s: int | None = Field(default=None, ge=1, le=30 * 86_400)
    """Seconds an attempt may run; then it is stopped and the job FAILED with reason `deadline`."""
    max_retries: int = Field(default=0, ge=0, le=10)
    """New attempts after errors of the training itself; losses of infrastructure do not count."""
    resources: ResourcesConfig = ResourcesConfig()
    artifacts: Annotated[
        tuple[Annotated[ArtifactConfig, ARTIFACTS], ...], Field(max_length=20, strict=False)
    ] = (ReconstructionSheetConfig(), OverlapSheetConfig(), PerturbationSheetConfig())
    """Pictures for MLflow; one that says nothing about the model at hand is left out."""
    checkpoint_every_s: int = Field(default=300, ge=1, le=86_400)
    """Seconds between checkpoints within an epoch; the end of each epoch leaves one anyway."""
    init_from: InitFrom | None = None
    keep: Annotated[
        tuple[Literal["best", "last"], ...],
        Field(max_length=2, strict=False),
        AfterValidator(_each_once),
    ] = ("best", "last")
    """Checkpoints that stay when the job has ended."""

    @property
    def training(self) -> TrainingConfig:
        """The part that the `Trainer` sees: with it checkpoints know what they belong to."""
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.model_fields})


def _named(name: str, description: str, training: TrainingConfig) -> TrainSpec:
    """A training of the library's presets as a job."""
    settings = {field: getattr(training, field) for field in TrainingConfig.model_fields}
    return TrainSpec(name=name, description=description, experiment=name, **settings)


_THINNEST = CapsNetConfig(
    conv_channels=32, primary_types=8, decoder=DecoderConfig(hidden=(128, 256))
)
"""A net that learns digits in half a minute on two cores."""
_THIN = CapsNetConfig(conv_channels=64, primary_types=8, decoder=DecoderConfig(hidden=(256, 512)))
"""One for more than single digits."""

PRESETS: dict[str, TrainSpec] = {
    "demo": TrainSpec(
        name="demo",
        description="A thin CapsNet on 5,000 real digits: the whole system in two minutes.",
        experiment="demo",
        dataset=Mnist5kConfig(max_shift=1),
        model=_THINNEST,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=CosineScheduleConfig(warmup_steps=60),
        epochs=14,
        batch_size=64,
        precision="bf16",
    ),
    "demo-multimnist": TrainSpec(
        name="demo-multimnist",
        description="A thin CapsNet on pairs of overlapping digits, told apart and drawn apart.",
        experiment="demo",
        dataset=MultiMnistConfig(),
        model=_THIN,
        optimizer=OptimizerConfig(learning_rate=3e-3, max_gradient_norm=1.0),
        schedule=CosineScheduleConfig(warmup_steps=200),
        epochs=3,
        batch_size=64,
        precision="bf16",
    ),
    "paper": _named("paper", "The paper's net on the whole of MNIST.", presets.PAPER),
    "official": _named("official", "All as in the authors' code, on MNIST.", presets.OFFICIAL),
    "baseline": _named("baseline", "The paper's CNN on the whole of MNIST.", presets.BASELINE),
    "multimnist": _named("multimnist", "The paper's net on MultiMNIST.", presets.MULTIMNIST),
    "multimnist-baseline": _named(
        "multimnist-baseline", "The paper's CNN on MultiMNIST.", presets.MULTIMNIST_BASELINE
    ),
}
"""Complete specifications by name: `capsctl submit demo`."""
