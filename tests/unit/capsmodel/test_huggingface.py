"""Foreign sets: Parquet files and image folders against the tensors they were made of."""

import sys
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from capsmodel.config import HuggingFaceConfig
from capsmodel.datasets import DataCorruptError, DataMissingError, Dataset, load_dataset
from capsmodel.datasets.sources import parquet

IMAGE = datasets.Features({"image": datasets.Image()}).arrow_schema.field("image").type


def images(count: int, *shape: int, seed: int = 1) -> torch.Tensor:
    """Random pictures, uint8 `[N, C, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)


GREY, GREY_TEST = images(12, 1, 6, 5), images(4, 1, 6, 5, seed=2)
COLOUR, COLOUR_TEST = images(12, 3, 6, 5), images(4, 3, 6, 5, seed=2)
LABELS, LABELS_TEST = [0, 1, 2] * 4, [2, 1, 0, 2]


def png(image: torch.Tensor) -> bytes:
    file = BytesIO()
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def write_as_the_hub(path: Path, pictures: torch.Tensor, labels: list, **columns: str) -> None:
    """A file as the `datasets` library writes it: encoded images, and names of the labels."""
    image, label = columns.get("image", "image"), columns.get("label", "label")
    names = columns.get("names", "cat,dog,emu").split(",")
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=names)}
    rows = {image: [{"bytes": png(p), "path": None} for p in pictures], label: labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)


def write_plain(path: Path, encoded: list, labels: list, **columns: str) -> None:
    """A file of another author: no names of labels, images as bytes alone or in a struct."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, label = columns.get("image", "image"), columns.get("label", "label")
    table = pa.table({"id": range(len(labels)), image: encoded, label: labels})
    pq.write_table(table, path, row_group_size=5)


def write_folder(folder: Path, pictures: torch.Tensor, names: list[str]) -> None:
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:03}.png").write_bytes(png(picture))


def load(data_dir: Path, channels: int = 1, **settings: object) -> Dataset:
    shape = (channels, 6, 5)
    settings = {"path": "set", "image_shape": shape, "classes": 3, **settings}
    return load_dataset(HuggingFaceConfig(**settings), data_dir)


def assert_holds(data: Dataset, train: tuple, test: tuple) -> None:
    assert torch.equal(data.train_images, train[0])
    assert data.train_labels.tolist() == train[1]
    assert torch.equal(data.test_images, test[0])
    assert data.test_labels.tolist() == test[1]


class TestParquet:
    @pytest.mark.parametrize("columns", [{}, {"image": "img"}, {"label": "labels"}])
    def test_as_on_the_hub(self, tmp_path, columns) -> None:
        data = tmp_path / "set" / "data"
        write_as_the_hub(data / "train-00000-of-00002.parquet", COLOUR[:7], LABELS[:7], **columns)
        write_as_the_hub(data / "train-00001-of-00002.parquet", COLOUR[7:], LABELS[7:], **columns)
        write_as_the_hub(data / "test-00000-of-00001.parquet", COLOUR_TEST, LABELS_TEST, **columns)
        found = load(tmp_path, channels=3)
        assert_holds(found, (COLOUR, LABELS), (COLOUR_TEST, LABELS_TEST))
        assert found.name == "huggingface"
        assert found.image_shape == (3, 6, 5)

    @pytest.mark.parametrize("wrapped", [True, False])
    def test_of_another_author(self, tmp_path, wrapped) -> None:
        def cells(pictures: torch.Tensor) -> list:
            encoded = [png(picture) for picture in pictures]
            return (
                [{"bytes": content, "path": "1.png"} for content in encoded] if wrapped else encoded
            )

        columns = {"image": "digit", "label": "value"}
        write_plain(tmp_path / "set" / "train.parquet", cells(GREY), LABELS, **columns)
        write_plain(tmp_path / "set" / "test.parquet", cells(GREY_TEST), LABELS_TEST, **columns)
        found = load(tmp_path, image_column="digit", label_column="value")
        assert_holds(found, (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    def test_paths_beside_the_file(self, tmp_path) -> None:
        write_folder(tmp_path / "set", GREY, ["pictures"] * 12)
        cells = [{"bytes": None, "path": f"pictures/{number:03}.png"} for number in range(12)]
        write_plain(tmp_path / "set" / "train.parquet", cells, LABELS)
        write_plain(tmp_path / "set" / "test.parquet", cells[:4], LABELS[:4])
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY[:4], LABELS[:4]))

    def test_in_folders_of_the_splits(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train" / "0000.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / "test" / "0000.parquet", GREY_TEST, LABELS_TEST)
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    def test_the_configuration_is_a_folder(self, tmp_path) -> None:
        for name, first in (("digits", 0), ("letters", 6)):
            folder = tmp_path / "set" / name
            write_as_the_hub(folder / "train.parquet", GREY[first : first + 6], LABELS[:6])
            write_as_the_hub(folder / "test.parquet", GREY_TEST, LABELS_TEST)
        found = load(tmp_path, configuration="letters")
        assert_holds(found, (GREY[6:], LABELS[:6]), (GREY_TEST, LABELS_TEST))
        with pytest.raises(DataMissingError, match="configuration is 'none', but there is no"):
            load(tmp_path, configuration="none")

    @pytest.mark.parametrize("name", ["/etc", "../p2", "..", ".", "a/b", "a\\b", "digits/"])
    def test_a_configuration_stays_in_the_folder(self, tmp_path, name) -> None:
        for folder in ("set/digits", "set/a/b", "p2"):
            write_as_the_hub(tmp_path / folder / "train.parquet", GREY, LABELS)
        with pytest.raises(DataMissingError, match=r"configuration is .* not a path"):
            load(tmp_path, configuration=name)

    @pytest.mark.parametrize("file", ["train.parquet", "train/0000.parquet", "train/x/0.parquet"])
    def test_configurations_are_not_merged(self, tmp_path, file) -> None:
        for name in ("digits", "letters"):
            write_as_the_hub(tmp_path / "set" / name / file, GREY, LABELS)
            write_as_the_hub(tmp_path / "set" / name / "test.parquet", GREY_TEST, LABELS_TEST)
        message = r"'train' is in several folders of .*: digits, letters\. .* `configuration`"
        with pytest.raises(DataCorruptError, match=message):
            load(tmp_path)
        found = load(tmp_path, configuration="digits")
        assert_holds(found, (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    @pytest.mark.parametrize("dictionary", [True, False])
    def test_labels_that_are_texts_count_in_their_sorted_order(self, tmp_path, dictionary) -> None:
        def texts(labels: list[int]) -> pa.Array:
            array = pa.array([["Ape", "bee", "cow"][label] for label in labels])
            return array.dictionary_encode() if dictionary else array

        encoded = [png(picture) for picture in GREY]
        write_plain(tmp_path / "set" / "train.parquet", encoded, texts(LABELS))
        write_plain(tmp_path / "set" / "test.parquet", encoded[:2], texts([2, 2]))
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY[:2], [2, 2]))

    def test_grey_as_colour_and_colour_as_grey(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / "test.parquet", COLOUR_TEST, LABELS_TEST)
        assert torch.equal(load(tmp_path, channels=3).train_images, GREY.expand(-1, 3, -1, -1))
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
        luma = (COLOUR_TEST * weights).sum(dim=1, keepdim=True)
        assert (load(tmp_path).test_images - luma).abs().max() < 0.51

    def test_resized(self, tmp_path) -> None:
        constant = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1)
        write_as_the_hub(tmp_path / "set" / "train.parquet", constant.expand(-1, 1, 9, 4), LABELS)
        write_as_the_hub(tmp_path / "set" / "test.parquet", GREY_TEST, LABELS_TEST)
        found = load(tmp_path, resize=True)
        assert torch.equal(found.train_images, constant.expand(-1, 1, 6, 5))
        assert torch.equal(found.test_images, GREY_TEST)


class TestImageFolder:
    NAMES = ("cat", "dog", "emu")

    def test_in_colour_with_splits(self, tmp_path) -> None:
        folder = tmp_path / "set"
        write_folder(folder / "train", COLOUR, [self.NAMES[label] for label in LABELS])
        write_folder(folder / "test", COLOUR_TEST, [self.NAMES[label] for label in LABELS_TEST])
        (folder / "train" / "cat" / "notes.txt").write_text("no image")
        (folder / "train" / ".hidden").mkdir()
        train, test = torch.tensor(LABELS).argsort(stable=True), [2, 1, 0, 3]
        expected = (COLOUR[train], sorted(LABELS)), (COLOUR_TEST[test], sorted(LABELS_TEST))
        assert_holds(load(tmp_path, channels=3), *expected)

    def test_without_splits_a_fifth_of_every_class_is_held_out(self, tmp_path) -> None:
        pictures = images(30, 1, 6, 5)
        write_folder(tmp_path / "set", pictures, [self.NAMES[n % 3] for n in range(30)])
        data = load(tmp_path)
        assert torch.bincount(data.train_labels).tolist() == [8, 8, 8]
        assert torch.bincount(data.test_labels).tolist() == [2, 2, 2]
        parts = [*data.train_images, *data.test_images], [*data.train_labels, *data.test_labels]
        known = {picture.numpy().tobytes(): n % 3 for n, picture in enumerate(pictures)}
        found = {image.numpy().tobytes(): int(label) for image, label in zip(*parts, strict=True)}
        assert found == known
        assert load(tmp_path).sha256 == data.sha256

    def test_a_class_may_be_called_as_a_split(self, tmp_path) -> None:
        write_folder(tmp_path / "set", images(30, 1, 6, 5), ["boat", "test", "train"] * 10)
        assert len(load(tmp_path).train_labels) == 24

    def test_a_class_that_only_the_test_has_is_refused(self, tmp_path) -> None:
        write_folder(tmp_path / "set" / "train", GREY, [self.NAMES[label] for label in LABELS])
        write_folder(tmp_path / "set" / "test", GREY_TEST, ["cat", "dog", "emu", "fox"])
        with pytest.raises(
            DataCorruptError, match=r"fox/003\.png: the label is 'fox', .* cat, dog"
        ):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("1.png", r"set/test is a split's folder, but its images \(1\.png\) are in no class's"),
            ("a/b/1.png", r"set/test is .* it has no folders with images: expected test/<class>/"),
        ],
    )
    def test_a_test_folder_without_classes_is_refused(self, tmp_path, file, message) -> None:
        write_folder(tmp_path / "set" / "train", images(30, 1, 6, 5), [*self.NAMES] * 10)
        path = tmp_path / "set" / "test" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(png(GREY[0]))
        with pytest.raises(DataCorruptError, match=message):
            load(tmp_path)

    def test_a_split_with_images_beside_its_classes_is_refused(self, tmp_path) -> None:
        write_folder(tmp_path / "set" / "train", images(30, 1, 6, 5), [*self.NAMES] * 10)
        (tmp_path / "set" / "train" / "stray.png").write_bytes(png(GREY[0]))
        with pytest.raises(DataCorruptError, match=r"set/train .* \(stray\.png\) are in no class"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("file", "error", "message"),
        [
            ("cat/extra/1.png", DataMissingError, "one folder deeper, as in cat/extra: move these"),
            (
                "cat/a/b/1.png",
                DataCorruptError,
                r"cat/a/b/1\.png is not right in its class's",
            ),
        ],
    )
    def test_images_below_a_class_are_refused(self, tmp_path, file, error, message) -> None:
        write_folder(tmp_path / "set", images(30, 1, 6, 5), [*self.NAMES] * 10)
        path = tmp_path / "set" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(png(GREY[0]))
        with pytest.raises(error, match=message):
            load(tmp_path)

    def test_images_below_a_class_of_a_split_are_refused(self, tmp_path) -> None:
        write_folder(tmp_path / "set" / "train", images(30, 1, 6, 5), [*self.NAMES] * 10)
        write_folder(tmp_path / "set" / "train" / "cat", GREY[:1], ["extra"])
        with pytest.raises(DataCorruptError, match=r"extra/000\.png is not right .* into .*cat"):
            load(tmp_path)

    def test_an_undecodable_file_is_named(self, tmp_path) -> None:
        write_folder(tmp_path / "set", GREY, [self.NAMES[label] for label in LABELS])
        (tmp_path / "set" / "dog" / "001.png").write_bytes(b"no image")
        with pytest.raises(DataCorruptError, match=r"dog/001\.png: is no image"):
            load(tmp_path)

    def test_too_few_images_to_hold_some_out(self, tmp_path) -> None:
        write_folder(tmp_path / "set", GREY[:3], [*self.NAMES])
        with pytest.raises(DataMissingError, match=r"too few images .* test_split"):
            load(tmp_path)


class TestSplits:
    @pytest.fixture
    def three(self, tmp_path) -> Path:
        for number, name in enumerate(("train", "validation", "extra")):
            part = slice(4 * number, 4 * number + 4)
            write_as_the_hub(tmp_path / "set" / f"{name}.parquet", GREY[part], LABELS[part])
        return tmp_path

    def test_validation_is_tested_on_where_there_is_no_test(self, three) -> None:
        assert torch.equal(load(three).test_images, GREY[4:8])

    def test_named_splits(self, three) -> None:
        found = load(three, train_split="validation", test_split="extra")
        assert torch.equal(found.train_images, GREY[4:8])
        assert torch.equal(found.test_images, GREY[8:])

    def test_the_split_to_learn_from_is_not_tested_on(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "test.parquet", GREY, LABELS)
        data = load(tmp_path, train_split="test")
        assert (len(data.train_labels), len(data.test_labels)) == (9, 3)

    @pytest.mark.parametrize("other", ["train_small", "train-small", "train.1", "train_2"])
    def test_a_split_whose_name_begins_as_another_one(self, tmp_path, other) -> None:
        write_as_the_hub(tmp_path / "set" / "train-00000.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / f"{other}-00000.parquet", GREY_TEST, LABELS_TEST)
        found = load(tmp_path, test_split=other)
        assert_holds(found, (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    @pytest.mark.parametrize("other", ["test_ood", "test-ood", "test.ood"])
    def test_a_split_that_nobody_asks_for_is_left_out(self, tmp_path, other) -> None:
        write_as_the_hub(tmp_path / "set" / "train-0.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / "test-0.parquet", GREY_TEST, LABELS_TEST)
        write_as_the_hub(tmp_path / "set" / f"{other}-0.parquet", GREY, LABELS)
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    @pytest.mark.parametrize("shard", ["-{}", "-{}-of-00002-ab12", "_{}", ".{}", "-{}.snappy"])
    def test_shards(self, tmp_path, shard) -> None:
        for number, part in (("00000", slice(5)), ("00001", slice(5, 12))):
            name = f"train{shard.format(number)}.parquet"
            write_as_the_hub(tmp_path / "set" / name, GREY[part], LABELS[part])
        write_as_the_hub(tmp_path / "set" / "test.parquet", GREY_TEST, LABELS_TEST)
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    def test_the_name_of_a_file_decides_before_that_of_its_folder(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train" / "test-0.parquet", GREY_TEST, LABELS_TEST)
        with pytest.raises(DataMissingError, match=r"'train', but .* train/test-0\.parquet"):
            load(tmp_path)
        write_as_the_hub(tmp_path / "set" / "train" / "0.parquet", GREY, LABELS)
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    def test_the_nearest_folder_of_a_split_decides(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train" / "0.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / "train" / "test" / "0.parquet", GREY_TEST, LABELS_TEST)
        assert_holds(load(tmp_path), (GREY, LABELS), (GREY_TEST, LABELS_TEST))

    @pytest.mark.parametrize("field", ["train_split", "test_split"])
    def test_an_unknown_split_is_refused_with_what_there_is(self, three, field) -> None:
        message = rf"{field} is 'dev', but .* extra\.parquet, train\.parquet, validation\.parquet"
        with pytest.raises(DataMissingError, match=message):
            load(three, **{field: "dev"})


class TestWhere:
    def test_the_data_folder_comes_before_the_working_folder(self, tmp_path, monkeypatch) -> None:
        write_as_the_hub(tmp_path / "here" / "set" / "train.parquet", GREY, LABELS)
        monkeypatch.chdir(tmp_path / "here")
        assert len(load(tmp_path / "data").train_labels) == 9
        write_as_the_hub(tmp_path / "data" / "set" / "train.parquet", GREY[:6], LABELS[:6])
        with pytest.raises(DataMissingError, match="too few images"):
            load(tmp_path / "data")
        assert len(load(tmp_path / "data", path=str(tmp_path / "here" / "set")).train_labels) == 9

    def test_no_folder_and_no_hub_id(self, tmp_path) -> None:
        with pytest.raises(DataMissingError, match=rf"no folder {tmp_path}/a/b/c or .* hub"):
            load(tmp_path, path="a/b/c")

    def test_an_empty_folder(self, tmp_path) -> None:
        (tmp_path / "set").mkdir()
        with pytest.raises(DataMissingError, match=r"holds neither Parquet files .* nor images"):
            load(tmp_path)

    @pytest.mark.parametrize("absent", ["PIL", "pyarrow", "datasets"])
    def test_a_package_that_is_missing_is_named(self, tmp_path, monkeypatch, absent) -> None:
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, LABELS)
        monkeypatch.setitem(sys.modules, absent, None)
        with pytest.raises(DataMissingError, match=rf"{absent}.*pip install '.*\[data\]'"):
            load(tmp_path)


class TestRefused:
    def test_truncated_parquet(self, tmp_path) -> None:
        path = tmp_path / "set" / "train.parquet"
        write_as_the_hub(path, GREY, LABELS)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataCorruptError, match=r"train\.parquet is no whole Parquet file"):
            load(tmp_path)

    def test_parquet_with_a_damaged_middle(self, tmp_path) -> None:
        path = tmp_path / "set" / "train.parquet"
        write_plain(path, [png(picture) for picture in GREY], LABELS)
        content = bytearray(path.read_bytes())
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        path.write_bytes(content)
        with pytest.raises(DataCorruptError, match=r"train\.parquet is no whole Parquet file"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            (b"no image", "row 9 of .*train.parquet: is no image of a known format"),
            (png(GREY[0])[:60], "row 9 of .*train.parquet: the image cannot be decoded"),
            (png(GREY[0, :, :5]), r"row 9 of .*train.parquet: .* 5x5 .* expected 6x5"),
            (None, "row 9 of .*train.parquet: column 'image' holds nothing"),
        ],
    )
    def test_an_image_that_is_not_as_it_should_be(self, tmp_path, cell, message) -> None:
        encoded = [png(picture) for picture in GREY]
        encoded[9] = cell
        write_plain(tmp_path / "set" / "train.parquet", encoded, LABELS)
        with pytest.raises(DataCorruptError, match=message):
            load(tmp_path)

    def test_a_column_without_image_files(self, tmp_path) -> None:
        write_plain(tmp_path / "set" / "train.parquet", [[1, 2]] * 12, LABELS)
        with pytest.raises(DataCorruptError, match="'image' holds a value of type list"):
            load(tmp_path)

    @pytest.mark.parametrize("value", [3, -1, None])
    def test_a_label_out_of_range(self, tmp_path, value) -> None:
        labels = [*LABELS[:7], value, *LABELS[8:]]
        write_plain(tmp_path / "set" / "train.parquet", [png(p) for p in GREY], labels)
        message = rf"row 7 of .*train.parquet: the label is {value}, expected .* 0 to 2"
        with pytest.raises(DataCorruptError, match=message):
            load(tmp_path)

    def test_rows_are_counted_from_batch_to_batch_and_anew_in_every_file(
        self, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(parquet, "BATCH_ROWS", 4)
        encoded = [png(picture) for picture in GREY]
        write_plain(tmp_path / "set" / "train-1.parquet", encoded, LABELS)
        write_plain(tmp_path / "set" / "train-2.parquet", encoded, [*LABELS[:10], 7, 0])
        with pytest.raises(DataCorruptError, match=r"row 10 of .*train-2\.parquet: the label is 7"):
            load(tmp_path)

    def test_labels_that_are_fractions(self, tmp_path) -> None:
        write_plain(tmp_path / "set" / "train.parquet", [png(p) for p in GREY], [0.5] * 12)
        with pytest.raises(DataCorruptError, match=r"row 0 of .* the label is 0\.5, expected"):
            load(tmp_path)

    def test_labels_that_are_booleans(self, tmp_path) -> None:
        write_plain(tmp_path / "set" / "train.parquet", [png(p) for p in GREY], [True, False] * 6)
        with pytest.raises(DataCorruptError, match=r"row 0 of .* the label is True, expected a wh"):
            load(tmp_path, classes=2)

    def test_a_class_without_an_image_to_learn_from(self, tmp_path) -> None:
        write_plain(tmp_path / "set" / "train.parquet", [png(p) for p in GREY], [0] * 12)
        with pytest.raises(DataCorruptError, match=r"classes is 2, .* no image of 1 of them: 1$"):
            load(tmp_path, classes=2)
        with pytest.raises(DataCorruptError, match=r"no image of 14 of them: 1, .*, 10 and 4 more"):
            load(tmp_path, classes=15)

    def test_a_named_class_without_an_image_to_learn_from(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, [0, 1] * 6)
        write_as_the_hub(tmp_path / "set" / "test.parquet", GREY_TEST, LABELS_TEST)
        with pytest.raises(DataCorruptError, match=r"no image of 1 of them: 2 \(emu\)"):
            load(tmp_path)

    def test_a_text_without_a_label_among_texts(self, tmp_path) -> None:
        texts = ["a", "b", "c", None] * 3
        write_plain(tmp_path / "set" / "train.parquet", [png(p) for p in GREY], texts)
        with pytest.raises(DataCorruptError, match=r"row 3 of .* None, expected one of a, b, c"):
            load(tmp_path)

    @pytest.mark.parametrize("field", ["image_column", "label_column"])
    def test_a_missing_column_is_told_with_those_there_are(self, tmp_path, field) -> None:
        name = field.removesuffix("_column")
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, LABELS, **{name: "other"})
        with pytest.raises(DataCorruptError, match=rf"no column '{name}' or .* other.* {field}"):
            load(tmp_path)
        with pytest.raises(DataCorruptError, match=r"no column 'mine' among .*other"):
            load(tmp_path, **{field: "mine"})

    def test_a_column_that_the_test_lacks(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / "test.parquet", GREY, LABELS, image="img")
        with pytest.raises(DataCorruptError, match="no column 'image' among img, label"):
            load(tmp_path)

    def test_another_number_of_classes(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, LABELS)
        with pytest.raises(DataCorruptError, match=r"classes is 4, .* 3 classes: cat, dog, emu"):
            load(tmp_path, classes=4)

    @pytest.mark.parametrize("second", ["test.parquet", "train-2.parquet"])
    def test_files_that_name_the_classes_otherwise(self, tmp_path, second) -> None:
        write_as_the_hub(tmp_path / "set" / "train-1.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / second, GREY, LABELS, names="dog,cat,emu")
        with pytest.raises(DataCorruptError, match=r"the classes of column 'label' are .*dog.*cat"):
            load(tmp_path)

    def test_a_split_without_rows(self, tmp_path) -> None:
        write_as_the_hub(tmp_path / "set" / "train.parquet", GREY, LABELS)
        write_as_the_hub(tmp_path / "set" / "test.parquet", GREY[:0], [])
        with pytest.raises(DataMissingError, match="test_split is 'test', but that split has no"):
            load(tmp_path)
