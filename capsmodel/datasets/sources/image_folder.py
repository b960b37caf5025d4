"""Image files in one folder a class."""

from collections.abc import Iterator
from pathlib import Path

from capsmodel.datasets import DataCorruptError
from capsmodel.datasets.sources import Row, Source, Split, listed

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files with other names are no images of the set."""


class ImageFolder(Source):
    """A folder with `<split>/<class>/*.png`, or without splits `<class>/*.png`.

    Without splits all images are the training split, whatever that is called. Images lie right in
    the folder of their class: a split with images above or below these folders is refused.
    """

    def __init__(self, folder: Path, train_split: str) -> None:
        """Look which of the two it is."""
        self._folder = folder
        self._train_split = train_split
        self._splits = {
            inner.name: classes for inner in _folders(folder) if (classes := _classes(inner))
        }
        self._classes = _classes(folder)

    def __bool__(self) -> bool:
        """Whether there are any images."""
        return bool(self._splits or self._classes)

    def find(self, name: str) -> Split | None:
        """The images of the split's classes.

        Raises:
            DataCorruptError: Some images of the split are in no class's folder.
        """
        if not self._splits:
            return self._split(self._folder, self._classes) if name == self._train_split else None
        folder = self._folder / name
        if folder not in _folders(self._folder):
            return None
        if name not in self._splits or name in self._classes:
            raise DataCorruptError(
                f"{folder} is a split's folder, but {_what_is_wrong(folder)}: expected "
                f"{name}/<class>/*.png"
            )
        return self._split(folder, self._splits[name])

    @property
    def contents(self) -> str:
        """The names of the splits, or of the classes."""
        if not self._splits:
            return f"{self._folder} has no splits, but the classes {listed(list(self._classes))}"
        if not self._classes or self._train_split in self._splits:
            return f"{self._folder} has the splits {listed(list(self._splits))}"
        name, classes = next(iter(self._splits.items()))
        return (
            f"{self._folder} has images right in the folders {listed(list(self._classes))}, as "
            f"classes have them, and images one folder deeper, as in {name}/{next(iter(classes))}: "
            "move these into their class's folder itself"
        )

    def _split(self, folder: Path, classes: dict[str, list[Path]]) -> Split:
        """The images of the classes that lie in a folder, and none of theirs left out."""
        for inner in _folders(folder):
            deeper = next(_images_below(inner), None)
            if deeper is not None:
                raise DataCorruptError(
                    f"{deeper} is not right in its class's folder: move it into {inner}"
                )
        return ImageFolderSplit(classes)


class ImageFolderSplit(Split):
    """Image files, class by class and by name; the name of a class is its folder's."""

    columns = ("image", "label")

    def __init__(self, classes: dict[str, list[Path]]) -> None:
        """Take the image files of each class."""
        self._classes = classes

    def __len__(self) -> int:
        """Number of image files."""
        return sum(map(len, self._classes.values()))

    def numbered_names(self, label_column: str) -> None:
        """Labels are names."""
        return

    def distinct_names(self, label_column: str) -> list[str]:
        """The names of the folders."""
        return sorted(self._classes)

    def rows(self, image_column: str, label_column: str) -> Iterator[Row]:
        """The image files with the names of their folders."""
        for name, files in self._classes.items():
            for path in files:
                yield Row(str(path), path, name)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Image files of each class that has some, by the names of the folders, sorted."""
    found = {inner.name: _images(inner) for inner in _folders(folder)}
    return {name: images for name, images in found.items() if images}


def _folders(folder: Path) -> list[Path]:
    return sorted(
        inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith(".")
    )


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in the folders of a folder, however deep."""
    for inner in _folders(folder):
        yield from _images(inner)
        yield from _images_below(inner)


def _what_is_wrong(folder: Path) -> str:
    """Why a folder is no split's."""
    images = _images(folder)
    if images:
        return f"its images ({listed([path.name for path in images], 3)}) are in no class's folder"
    return "it has no folders with images"
