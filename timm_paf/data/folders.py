"""Image files in class folders: which files there are, and how any image becomes 8-bit pixels."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps
from timm.utils.misc import natural_key
from torchvision.datasets.folder import IMG_EXTENSIONS

from timm_paf.data.errors import BadArchive, DataChanged
from timm_paf.data.stored import stamp

_ANNOTATIONS = 'val_annotations.txt'  # of Tiny-ImageNet: lines of file, class and a box, separated by tabs
_LEFT_BY_SYSTEMS = {'__macosx', 'thumbs.db', 'desktop.ini', '@eadir', '$recycle.bin', 'system volume information'}
_SIXTEEN_BITS = ('I;16', 'I;16B', 'I;16L', 'I;16N')
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap height and width


def is_hidden(name: str) -> bool:
    """Whether a name is hidden, or left behind by an operating system: `._a.png`, `__MACOSX`, `Thumbs.db`."""
    return name.startswith('.') or name.lower() in _LEFT_BY_SYSTEMS


def natural_order(name: str) -> tuple[object, str]:
    """Key that sorts names as timm does (`n2` before `n10`, small and capital letters alike)."""
    return natural_key(name), name


class ImageFolder:
    """Files in class folders, in the form of timm's readers: `self[index]` is an open file and a class number.

    Classes are the sub-folders of `root` in natural order, whatever folders are inside them, as in Tiny-ImageNet's
    `train/<class>/images`. If `root` holds `val_annotations.txt`, as Tiny-ImageNet's `val` does, that file names the
    classes. Within a class, files are in natural order. Hidden files and folders, and files without the ending of an
    image, are left out. Names, sizes and times take about 40 bytes of memory per image.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no images, or folders at two levels can be the classes.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root, self.skipped = Path(root), Counter[str]()
        if not self.root.is_dir():
            raise FileNotFoundError(f'{root}: no such folder; check the path')
        if (self.root / _ANNOTATIONS).is_file():
            found = self._annotated()
        else:
            entries = self._entries(self.root)
            self.skipped['not in a class folder'] += sum(_is_image(entry.name) for entry in entries)
            found = {entry.name: list(self._files(Path(entry.path))) for entry in entries if entry.is_dir()}
            _check_levels(self.root, found)
        self.empty_folders = [name for name, files in found.items() if not files]
        self.class_names = tuple(name for name, files in found.items() if files)
        if not self.class_names:
            raise BadArchive(
                f'{root} holds no images; expected one sub-folder with image files per class, or .npz files, or '
                f'images.npy; check the path')
        self.labels = np.repeat(np.arange(len(self.class_names)), [len(found[name]) for name in self.class_names])
        files = [file for name in self.class_names for file in found[name]]
        self._names = np.array([os.fsencode(name) for name, _ in files])
        self._stamps = np.array([known for _, known in files], np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        """The content of one file, and its class number; raises `DataChanged` if its size or time is another one."""
        path = self.path(index)
        with open(path, 'rb') as file:
            known, content = stamp(os.fstat(file.fileno())), file.read()
        if known != tuple(self._stamps[index]):
            raise DataChanged(f'{path}: changed since its folder was opened; do not modify data during a run')
        return io.BytesIO(content), int(self.labels[index])

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.root / os.fsdecode(self._names[index])

    def filename(self, index: int, *, absolute: bool = True) -> str:
        """The file of one image, with its folder, as timm's readers name it."""
        return str(self.path(index))

    @property
    def notes(self) -> list[str]:
        """A line about what was left out, if anything was."""
        reasons = [f'{count} {reason}' for reason, count in sorted(self.skipped.items()) if count]
        if self.empty_folders:
            reasons.append(f'{len(self.empty_folders)} folders without images ({", ".join(self.empty_folders[:3])})')
        return [f'{self.root}: left out {"; ".join(reasons)}'] if reasons else []

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What a folder holds, in natural order, without hidden names."""
        with os.scandir(folder) as entries:
            everything = sorted(entries, key=lambda entry: natural_order(entry.name))
        self.skipped['hidden'] += sum(is_hidden(entry.name) for entry in everything)
        return [entry for entry in everything if not is_hidden(entry.name)]

    def _files(self, folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Image files in a folder and in those inside it, relative to the root, and their stamps."""
        entries = self._entries(folder)
        for entry in entries:
            if entry.is_dir():
                continue
            if _is_image(entry.name):
                yield os.path.relpath(entry.path, self.root), stamp(entry.stat())
            else:
                self.skipped['without the ending of an image'] += 1
        for entry in entries:
            if entry.is_dir():
                yield from self._files(Path(entry.path))

    def _annotated(self) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
        files = {os.path.basename(name): (name, known) for name, known in self._files(self.root)}
        self.skipped['without the ending of an image'] -= 1  # the annotations
        lines = (self.root / _ANNOTATIONS).read_text(encoding='utf-8').splitlines()
        classes = dict(line.split('\t')[:2] for line in lines if '\t' in line)
        if missing := sorted(classes.keys() - files.keys(), key=natural_order):
            raise FileNotFoundError(f'{self.root / missing[0]} is missing, but {_ANNOTATIONS} lists it; copy it again')
        self.skipped[f'without a line in {_ANNOTATIONS}'] += len(files.keys() - classes.keys())
        found: dict[str, list[tuple[str, tuple[int, ...]]]] = {
            name: [] for name in sorted(set(classes.values()), key=natural_order)}
        for name in sorted(classes, key=natural_order):
            found[classes[name]].append(files[name])
        return found


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image as it is to be seen, in mode L (1 channel) or RGB (3).

    It is turned as its EXIF data say. 16-bit gray is scaled to 8 bits. Transparent pixels show white. Other colour
    spaces become RGB as Pillow does it. Raises ValueError for an animation, and for modes without a known range.
    """
    frames = getattr(image, 'n_frames', 1)
    if frames > 1 and image.format != 'MPO':  # MPO is a JPEG with a preview or a second view
        raise ValueError(f'it is an animation or a file of {frames} images, expected one image; take it apart')
    form, image = image.format, ImageOps.exif_transpose(image)  # a turned copy has no format
    if image.mode in _SIXTEEN_BITS or (image.mode == 'I' and form in ('PNG', 'PPM')):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.mode in ('I', 'F') or image.mode.startswith('I;'):
        raise ValueError(f'it is of mode {image.mode}, whose range is unknown, expected 8 or 16 bits; convert it')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('L' if channels == 1 else 'RGB')


def own_channels(image: Image.Image) -> int:
    """1 for an image in black and white or gray, else 3."""
    return 1 if image.mode in ('1', 'L', 'LA', 'I') or image.mode.startswith('I;') else 3


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image after the rotation of its EXIF data; reads no pixel."""
    width, height = image.size
    return (width, height) if image.getexif().get(_ORIENTATION) in _TURNED else (height, width)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _check_levels(root: Path, found: dict[str, list[tuple[str, tuple[int, ...]]]]) -> None:
    """Raise ValueError if the folders inside class folders look like the classes."""
    inner = {name: {Path(file).parent.name for file, _ in files if Path(file).parent.name != name}
             for name, files in found.items()}
    every = Counter(folder for folders in inner.values() for folder in folders)
    if any(len(folders) > 1 for folders in inner.values()) and max(every.values()) == 1:
        raise BadArchive(
            f'{root}: the classes can be the folders {", ".join(list(found)[:3])} or those inside them, '
            f'{", ".join(sorted(every, key=natural_order)[:3])}; expected one level of class folders, move the others')
