"""Settings of the data sets, and the table of them."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from capsmodel.config.base import Config, ImageShape
from capsmodel.open_set import Member, OpenSet


class DatasetConfig(Config):
    """Base of the data sets' settings.

    A set states `image_shape` and `classes`: as class variables, or as fields where the user must
    say them.
    """

    if TYPE_CHECKING:

        @property
        def image_shape(self) -> tuple[int, int, int]:
            """Channels, height and width of the images that a model sees."""

        @property
        def classes(self) -> int:
            """Number of classes J."""

    targets: ClassVar[int] = 1
    """Classes present in an image."""
    type: str
    validation_fraction: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the training set held out, by seed, to choose the best weights; 0 holds out none."""
    max_shift: int = Field(default=2, ge=0, le=8)
    """Augmentation: shifts of up to so many pixels each way, filled with zeros; 0 turns it off."""
    per_class: int | None = Field(default=None, ge=1, le=1_000_000)
    """Learn from only so many images of each class, chosen by the training's seed."""


class MnistConfig(DatasetConfig):
    """The whole of MNIST: 60,000 training and 10,000 test images, 28x28."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["mnist"] = "mnist"


class FashionMnistConfig(DatasetConfig):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["fashion-mnist"] = "fashion-mnist"


class Mnist5kConfig(DatasetConfig):
    """5,000 real MNIST digits that a package carries: 4,000 to learn from, 1,000 to test."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["mnist-5k"] = "mnist-5k"


class MultiMnistConfig(DatasetConfig):
    """MultiMNIST (section 6): two digits of different classes on one another, 36x36.

    Training pairs are made anew for every batch; test pairs are always the same.
    """

    image_shape: ClassVar = (1, 36, 36)
    classes: ClassVar = 10
    targets: ClassVar[int] = 2
    type: Literal["multimnist"] = "multimnist"
    max_shift: int = Field(default=4, ge=0, le=8)
    """Each digit is shifted by up to so many pixels each way: 4 in the paper, 6 in the authors'
    code."""
    test_partners: int = Field(default=1, ge=1, le=1000)
    """Test pairs for each test digit; the paper has 1,000."""
    source: Literal["mnist", "mnist-5k"] = "mnist"
    """Whose digits are overlaid."""


class ExpandedMnistConfig(DatasetConfig):
    """MNIST placed at random on 40x40 pixels, anew in every epoch (section 5.2)."""

    image_shape: ClassVar = (1, 40, 40)
    classes: ClassVar = 10
    type: Literal["expanded-mnist"] = "expanded-mnist"
    max_shift: int = Field(default=6, ge=0, le=6)
    """Distance from the middle in training, in pixels each way; tests are placed by up to 6."""


class AffineMnistConfig(DatasetConfig):
    """A synthetic stand-in for affNIST: affine transforms of MNIST's test digits, 40x40.

    It is learnt as `expanded-mnist` and tested on rotations of up to 20 degrees, shears of up to
    0.2, scales of 0.8 to 1.2 and small shifts. The published affNIST files are another draw.
    """

    image_shape: ClassVar = (1, 40, 40)
    classes: ClassVar = 10
    type: Literal["affine-mnist"] = "affine-mnist"
    max_shift: int = Field(default=6, ge=0, le=6)
    """Distance from the middle in training, in pixels each way."""
    test_copies: int = Field(default=1, ge=1, le=32)
    """Transforms of each of the 10,000 test digits; affNIST has 32."""


class HuggingFaceConfig(DatasetConfig):
    """Labelled images of your own, or any set of the Hugging Face hub.

    A hub id, or Parquet files or a folder of images on the machines that train.
    """

    type: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1, max_length=500)
    """A hub id (`uoft-cs/cifar10`), a folder of images in one subfolder a class, or a folder of
    Parquet files; a relative folder is looked for in CAPS_DATA_DIR first."""
    configuration: str | None = Field(default=None, min_length=1, max_length=200)
    """Configuration of a hub id that has several, `cropped_digits` of SVHN; of a folder, a
    subfolder."""
    revision: str | None = Field(default=None, min_length=1, max_length=200)
    """Commit, tag or branch of a hub id."""
    image_shape: ImageShape
    """Channels (1 grey, 3 colour), height and width that the images have or are resized to."""
    classes: int = Field(ge=2, le=1000)
    """Number of classes J."""
    image_column: str | None = Field(default=None, min_length=1, max_length=200)
    """Column of the images; by default `image` or `img`."""
    label_column: str | None = Field(default=None, min_length=1, max_length=200)
    """Column of the labels; by default `label` or `labels`."""
    train_split: str = Field(default="train", min_length=1, max_length=200)
    """Split to learn from."""
    test_split: str | None = Field(default=None, min_length=1, max_length=200)
    """Split to test on; by default `test`, or `validation`, or a fifth of the training split."""
    resize: bool = False
    """Resize images of another size (bilinear) instead of refusing them."""
    max_shift: int = Field(default=0, ge=0, le=8)
    """Augmentation: shifts of up to so many pixels each way, filled with zeros; 0 turns it off."""

    @field_validator("image_shape")
    @classmethod
    def _grey_or_colour(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if shape[0] not in (1, 3):
            raise ValueError(
                f"image_shape {list(shape)} has {shape[0]} channels: files of images become 1 "
                "(grey) or 3 (colour)"
            )
        return shape

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.test_split == self.train_split:
            raise ValueError(
                f"test_split and train_split are both {self.train_split!r}: a net is not tested on "
                "what it learnt; leave test_split out to hold out a fifth"
            )
        return self


DATASETS = OpenSet(
    "capsmodel.datasets",
    default="mnist",
    members={
        "mnist": Member(MnistConfig, "capsmodel.datasets.mnist:load"),
        "fashion-mnist": Member(FashionMnistConfig, "capsmodel.datasets.fashion_mnist:load"),
        "mnist-5k": Member(Mnist5kConfig, "capsmodel.datasets.mnist_5k:load"),
        "multimnist": Member(MultiMnistConfig, "capsmodel.datasets.multimnist:load"),
        "expanded-mnist": Member(ExpandedMnistConfig, "capsmodel.datasets.expanded_mnist:load"),
        "affine-mnist": Member(AffineMnistConfig, "capsmodel.datasets.affine_mnist:load"),
        "huggingface": Member(HuggingFaceConfig, "capsmodel.datasets.huggingface:load"),
    },
)
