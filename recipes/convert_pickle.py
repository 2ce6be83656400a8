"""Convert a pickled image set, such as TI-500K, into a plain archive, without running any code in the pickle.

    python recipes/convert_pickle.py ti_500K_pseudo_labeled.pickle --output ti500k.npz --num-classes 10

The pickle holds a dictionary with `data` uint8 (N, H, W, C) or (N, C, H, W) and `extrapolated_targets` (N,); use
`--image-key` and `--label-key` for other names. The archive holds `image` (N, H, W, C) uint8 and `label` (N,) int64,
uncompressed. The whole pickle is read into memory.
"""
import argparse
import codecs
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_paf.data import LabelledImages, save_archive
from timm_paf.engine.cli import run


class PickledDtype:
    """Replaces numpy.dtype: only numbers are accepted, and a pickle cannot set the flags of a dtype."""

    def __init__(self, name: str, *flags: object) -> None:
        if not re.fullmatch(r'[<>|=]?[iuf][1248]|[<>|=]?b1', str(name)):
            raise pickle.UnpicklingError(f'an array of dtype {name!r}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1].replace('|', '='))

    def numbers(self, content: bytes | str) -> np.ndarray:
        """The numbers in a content, which Python 2 wrote as text."""
        return np.frombuffer(content.encode('latin-1') if isinstance(content, str) else content, self.dtype)


class PickledArray:
    """Replaces numpy.ndarray and the functions that rebuild arrays."""
    value: np.ndarray

    def __init__(self, *args: Any) -> None:
        if len(args) == 4:  # content, dtype, shape and order: protocol 5
            self.__setstate__((1, args[2], args[1], args[3] == 'F', args[0]))

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = dtype.numbers(content).reshape(shape, order='F' if fortran else 'C')


ALLOWED: dict[str, Any] = {'numpy.ndarray': PickledArray, 'numpy.dtype': PickledDtype, '_codecs.encode': codecs.encode}
for core in ('numpy.core', 'numpy._core'):  # before numpy 2, and since
    ALLOWED |= {f'{core}.multiarray._reconstruct': PickledArray, f'{core}.numeric._frombuffer': PickledArray,
                f'{core}.multiarray.scalar': lambda dtype, content: dtype.numbers(content)[0]}


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and arrays; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in ALLOWED:
            raise pickle.UnpicklingError(f'it names {module}.{name}')
        return ALLOWED[f'{module}.{name}']


def load_dictionary(path: str) -> dict[Any, Any]:
    """Read a pickled dictionary of arrays."""
    with open(path, 'rb') as file:
        try:
            content = ArrayUnpickler(file, encoding='latin1').load()
            return {key.decode() if isinstance(key, bytes) else key: getattr(value, 'value', value)
                    for key, value in content.items()}
        except Exception as error:  # a broken pickle raises errors of any type
            raise ValueError(f'{path}: not a readable pickle of a dictionary of arrays ({type(error).__name__}: '
                             f'{error}); get the file again. No code in it was run.') from error


def convert(args: argparse.Namespace) -> str:
    """Write the archive; return the line to print."""
    output = Path(args.output)
    if output.suffix != '.npz' or not output.parent.is_dir() or (output.exists() and not args.overwrite):
        raise ValueError(f'--output {output}: expected a new file NAME.npz in a folder that exists; or --overwrite')
    values = load_dictionary(args.pickle)
    for key in (args.image_key, args.label_key):
        if key not in values:
            raise ValueError(f'{args.pickle}: no array {key!r}, only {list(values)}; see --image-key and --label-key')
    image, label = np.array(values[args.image_key]), np.array(values[args.label_key])
    if image.ndim == 4 and image.shape[3] in (1, 3):
        image = image.transpose(0, 3, 1, 2)
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[1] not in (1, 3) or label.dtype.kind not in 'iu':
        raise ValueError(f'{args.pickle}: got {image.shape} {image.dtype} and {label.dtype}, expected images '
                         '(N, H, W, C) or (N, C, H, W) uint8 with 1 or 3 channels, and integer labels')
    save_archive(output, LabelledImages(
        torch.from_numpy(image), torch.from_numpy(label.astype(np.int64)), args.num_classes, args.pickle))
    return f'{output}: images {image.shape} (N, C, H, W), labels from {label.min()} to {label.max()}'


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('pickle', help='the file to convert')
    parser.add_argument('--output', required=True, help='archive to write, NAME.npz')
    parser.add_argument('--num-classes', type=int, default=10, help='labels must be below this (default: 10)')
    parser.add_argument('--image-key', default='data', help='name of the images (default: %(default)s)')
    parser.add_argument('--label-key', default='extrapolated_targets', help='name of the labels (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace the archive if it exists')
    return run(lambda: convert(parser.parse_args(argv)), print)


if __name__ == '__main__':
    sys.exit(main())
