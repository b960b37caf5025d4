"""MNIST (LeCun, Cortes, Burges): four IDX files in `<data_dir>/mnist`, plain or gzip-compressed."""

from pathlib import Path

from capsmodel.config import MnistConfig
from capsmodel.datasets import Dataset
from capsmodel.datasets.idx_set import IdxSet

MNIST = IdxSet(
    title="MNIST",
    folder="mnist",
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    md5_of="content",  # gzip containers made afresh differ
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    hint=", and the data set 'mnist-5k' needs no files",
)


def load(config: MnistConfig, data_dir: Path) -> Dataset:
    """Load and verify the whole of MNIST; files that are missing are downloaded.

    Raises:
        DataMissingError: A file is missing and could not be downloaded.
        DataCorruptError: A file's content is not the published one.
    """
    return MNIST.load(data_dir)
