"""Convert a pickled image set, such as TI-500K, into a plain archive, without running any code in the pickle.

    python recipes/convert_pickle.py ti_500K_pseudo_labeled.pickle --output ti500k.npz --num-classes 10

The pickle holds a dictionary with `data` uint8 (N, H, W, C) or (N, C, H, W) and `extrapolated_targets` (N,); use
`--image-key` and `--label-key` for other names. The archive holds `image` (N, H, W, C) uint8 and `label` (N,) int64,
stored. The whole pickle is read into memory.
"""
import argparse
import codecs
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from timm_paf.data.archives import write_arrays
from timm_paf.engine.cli import run


class PickledDtype:
    """Replaces numpy.dtype, so that only numbers are accepted."""

    def __init__(self, name: str, *flags: object) -> None:
        if not re.fullmatch(r'[<>|=]?[iuf][1248]|[<>|=]?b1', str(name)):
            raise pickle.UnpicklingError(f'an array of dtype {name!r}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1].replace('|', '='))


class PickledArray:
    """Replaces numpy.ndarray and the functions that rebuild arrays."""
    value: np.ndarray

    def __init__(self, *ignored: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        content = content.encode('latin-1') if isinstance(content, str) else content  # as Python 2 wrote it
        self.value = np.frombuffer(content, dtype.dtype).reshape(shape, order='F' if fortran else 'C')


def from_buffer(content: bytes, dtype: PickledDtype, shape: tuple[int, ...], order: str = 'C') -> PickledArray:
    array = PickledArray()
    array.__setstate__((1, shape, dtype, order == 'F', content))
    return array


ALLOWED: dict[tuple[str, str], Any] = {
    ('numpy', 'ndarray'): PickledArray, ('numpy', 'dtype'): PickledDtype, ('_codecs', 'encode'): codecs.encode}
for core in ('numpy.core', 'numpy._core'):  # before numpy 2, and since
    ALLOWED |= {
        (f'{core}.multiarray', '_reconstruct'): PickledArray,
        (f'{core}.multiarray', 'scalar'): lambda dtype, content: from_buffer(content, dtype, ()),
        (f'{core}.numeric', '_frombuffer'): from_buffer}


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and arrays; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f'it names {module}.{name}')
        return ALLOWED[module, name]


def load_arrays(path: Path) -> dict[Any, np.ndarray]:
    """Read the arrays, and lists of integers as arrays, of a pickled dictionary."""
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            items = [item.value if isinstance(item, PickledArray) else item for item in value]
            return np.array(items) if all(isinstance(item, int | np.ndarray) for item in items) else items
        return value.value if isinstance(value, PickledArray) else value

    with open(path, 'rb') as file:
        try:
            content = ArrayUnpickler(file, encoding='latin1').load().items()
            values = {key.decode() if isinstance(key, bytes) else key: plain(value) for key, value in content}
        except Exception as error:  # a broken pickle raises errors of any type
            raise ValueError(f'{path}: not a readable pickle of a dictionary of arrays ({type(error).__name__}: '
                             f'{error}); get the file again. No code in it was run.') from error
    return {key: value for key, value in values.items() if isinstance(value, np.ndarray)}


def convert(args: argparse.Namespace) -> str:
    """Write the archive; return the line to print."""
    path, output = Path(args.pickle), Path(args.output)
    if output.suffix != '.npz' or not output.parent.is_dir():
        raise ValueError(f'--output {output}: expected a file name that ends in .npz, in a folder that exists')
    if output.exists() and not args.overwrite:
        raise ValueError(f'{output} already exists; give another --output, or --overwrite to replace it')
    arrays = load_arrays(path)
    for key in (args.image_key, args.label_key):
        if key not in arrays:
            raise ValueError(f'{path}: no array {key!r}, only {list(arrays)}; see --image-key and --label-key')
    image, label = arrays[args.image_key], arrays[args.label_key]
    if image.ndim == 4 and image.shape[3] not in (1, 3):
        image = image.transpose(0, 2, 3, 1)
    if image.dtype != np.uint8 or image.ndim != 4 or 0 in image.shape or image.shape[3] not in (1, 3):
        raise ValueError(f'{path}: {args.image_key!r} is {image.shape} {image.dtype}, expected (N, H, W, C) or '
                         '(N, C, H, W) uint8 with 1 or 3 channels')
    if label.dtype.kind not in 'iu' or label.shape != (len(image),):
        raise ValueError(f'{path}: {args.label_key!r} is {label.shape} {label.dtype} for {len(image)} images, expected '
                         f'integers ({len(image)},)')
    for index in np.flatnonzero((label < 0) | (label >= args.num_classes)):
        raise ValueError(
            f'{path}: {args.label_key!r} is {label[index]} at index {index}, expected 0 to {args.num_classes - 1}')
    write_arrays(output, image, label.astype(np.int64))
    return f'{output}: images {image.shape}, labels from {label.min()} to {label.max()}'


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('pickle', help='the file to convert')
    parser.add_argument('--output', required=True, help='archive to write, NAME.npz')
    parser.add_argument('--num-classes', type=int, default=10, help='labels must be lower than it (default: 10)')
    parser.add_argument('--image-key', default='data', help='name of the images (default: %(default)s)')
    parser.add_argument('--label-key', default='extrapolated_targets', help='name of the labels (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace the archive if it exists')
    return run(lambda: convert(parser.parse_args(argv)), print)


if __name__ == '__main__':
    sys.exit(main())
