"""Image files in one folder a class."""

from collections.abc import Iterator
from pathlib import Path

from capsmodel.datasets.sources import Row, Source, Split, listed

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files with other names are no images of the set."""


class ImageFolder(Source):
    """A folder with `<split>/<class>/*.png`, or without splits `<class>/*.png`.

    Without splits all images are the training split, whatever that is called.
    """

    def __init__(self, folder: Path, train_split: str) -> None:
        """Look which of the two it is."""
        self._folder = folder
        self._train_split = train_split
        self._splits = {
            inner.name: classes for inner in _folders(folder) if (classes := _classes(inner))
        }
        self._classes = {} if self._splits else _classes(folder)

    def __bool__(self) -> bool:
        """Whether there are any images."""
        return bool(self._splits or self._classes)

    def find(self, name: str) -> Split | None:
        """The images of the split's classes."""
        if self._classes and name == self._train_split:
            return ImageFolderSplit(self._classes)
        classes = self._splits.get(name)
        return ImageFolderSplit(classes) if classes else None

    @property
    def contents(self) -> str:
        """The names of the splits, or of the classes."""
        if self._splits:
            return f"{self._folder} has the splits {listed(list(self._splits))}"
        return f"{self._folder} has no splits, but the classes {listed(list(self._classes))}"


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
