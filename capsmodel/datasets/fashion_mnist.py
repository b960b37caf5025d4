"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): four IDX files in `<data_dir>/fashion-mnist`."""

from pathlib import Path

from capsmodel.config import FashionMnistConfig
from capsmodel.datasets import Dataset
from capsmodel.datasets.idx_set import IdxSet

FASHION_MNIST = IdxSet(
    title="Fashion-MNIST",
    folder="fashion-mnist",
    md5={
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    md5_of="gzip",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    per_class=(6_000, 1_000),
)


def load(config: FashionMnistConfig, data_dir: Path) -> Dataset:
    """Load and verify Fashion-MNIST; files that are missing are downloaded.

    A .gz file must be the published one. Of plain files no digest is known: they must hold 6,000
    and 1,000 images of each class.

    Raises:
        DataMissingError: A file is missing and could not be downloaded.
        DataCorruptError: A file's content is not the published one.
    """
    return FASHION_MNIST.load(data_dir)
