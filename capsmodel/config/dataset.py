"""Settings of the data sets, and the table of them."""

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from capsmodel.config.base import Config, ImageShape
from capsmodel.open_set import Member, OpenSet


class StoredPictures(NamedTuple):
    """What a published set holds."""

    per_class: tuple[int, ...]
    """Pictures of each class to learn from."""
    test: int
    """Pictures to test."""


class PartSizes(NamedTuple):
    """Images of each part of a data set, as a training sees them."""

    train: int
    """Images an epoch."""
    validation: int
    test: int


MNIST_PICTURES = StoredPictures(
    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949), test=10_000
)
FASHION_MNIST_PICTURES = StoredPictures((6000,) * 10, test=10_000)
MNIST_5K_PICTURES = StoredPictures((400,) * 10, test=1000)


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

    @property
    def stored(self) -> StoredPictures | None:
        """What the set holds; None where only its files tell."""
        return None

    @property
    def test_images_per_picture(self) -> int:
        """Test images made of each stored picture."""
        return 1

    @property
    def _held_out(self) -> list[int]:
        """Images of each class that validation takes, of a set that says what it holds."""
        stored = self.stored.per_class if self.stored else ()
        return [round(count * self.validation_fraction) for count in stored]

    @property
    def images_per_class(self) -> tuple[int, ...] | None:
        """Images of each class that validation leaves, before `per_class` chooses among them."""
        if self.stored is None:
            return None
        pairs = zip(self.stored.per_class, self._held_out, strict=True)
        return tuple(count - held_out for count, held_out in pairs)

    @property
    def part_sizes(self) -> PartSizes | None:
        """Images of each part; None where the files must tell."""
        if self.stored is None or self.images_per_class is None:
            return None
        train = [min(count, self.per_class or count) for count in self.images_per_class]
        test = self.stored.test * self.test_images_per_picture
        return PartSizes(sum(train), sum(self._held_out), test)


class MnistConfig(DatasetConfig):
    """The whole of MNIST: 60,000 training and 10,000 test images, 28x28."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["mnist"] = "mnist"

    @property
    def stored(self) -> StoredPictures:
        """Of MNIST."""
        return MNIST_PICTURES


class FashionMnistConfig(DatasetConfig):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["fashion-mnist"] = "fashion-mnist"

    @property
    def stored(self) -> StoredPictures:
        """Of Fashion-MNIST."""
        return FASHION_MNIST_PICTURES


class Mnist5kConfig(DatasetConfig):
    """5,000 real MNIST digits that a package carries: 4,000 to learn from, 1,000 to test."""

    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    type: Literal["mnist-5k"] = "mnist-5k"

    @property
    def stored(self) -> StoredPictures:
        """Of the package's digits."""
        return MNIST_5K_PICTURES


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

    @property
    def stored(self) -> StoredPictures:
        """Of the digits to overlay."""
        return MNIST_PICTURES if self.source == "mnist" else MNIST_5K_PICTURES

    @property
    def test_images_per_picture(self) -> int:
        """Every test digit comes so often, each time with another partner."""
        return self.test_partners


class ExpandedMnistConfig(DatasetConfig):
    """MNIST placed at random on 40x40 pixels, anew in every epoch (section 5.2)."""

    image_shape: ClassVar = (1, 40, 40)
    classes: ClassVar = 10
    type: Literal["expanded-mnist"] = "expanded-mnist"
    max_shift: int = Field(default=6, ge=0, le=6)
    """Distance from the middle in training, in pixels each way; tests are placed by up to 6."""

    @property
    def stored(self) -> StoredPictures:
        """Of MNIST."""
        return MNIST_PICTURES


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

    @property
    def stored(self) -> StoredPictures:
        """Of MNIST."""
        return MNIST_PICTURES

    @property
    def test_images_per_picture(self) -> int:
        """As many as transforms."""
        return self.test_copies


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
