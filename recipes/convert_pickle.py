"""Convert a pickled image set, such as TI-500K, into a plain archive, without running anything that the pickle names.

    python recipes/convert_pickle.py ti_500K_pseudo_labeled.pickle --output ti500k.npz --num-classes 10

The pickle holds a dictionary with `data` uint8 (N, H, W, C) or (N, C, H, W) and `extrapolated_targets` (N,);
`--image-key` and `--label-key` name others. The archive holds `image` (N, H, W, C) uint8 and `label` (N,) int64,
stored. All of the pickle is held in memory once.
"""
import argparse
import pickle
import re
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from timm_paf.data.archives import write_arrays
from timm_paf.engine.cli import run

_ARRAYS = {  # what pickles of numpy arrays name, before and since numpy 2
    (module, name)
    for package in ('numpy.core', 'numpy._core')
    for module, name in ((f'{package}.multiarray', '_reconstruct'), (f'{package}.multiarray', 'scalar'),
                         (f'{package}.numeric', '_frombuffer'))
} | {('numpy', 'ndarray'), ('numpy', 'dtype')}
_DTYPE = re.compile(r'[<>|=]?[iuf][1248]|[<>|=]?b1')


class _Refused(Exception):
    """What a pickle holds beside arrays; the message says it."""


class _Dtype:
    """Stands for numpy.dtype: keeps what the pickle says of it, and never hands that to numpy unchecked."""

    def __init__(self, name: object, *flags: object) -> None:
        self.name, self.order = name, '|'

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or any(part not in (None, ()) for part in state[2:5]):
            raise _Refused('an array of a structured dtype, expected plain numbers')
        self.order = state[1]

    def resolve(self) -> np.dtype:
        if not isinstance(self.name, str) or not _DTYPE.fullmatch(self.name) or self.order not in ('<', '>', '|', '='):
            raise _Refused(f'an array of dtype {self.name!r}, expected plain numbers')
        name = self.name.lstrip('<>|=')
        return np.dtype(name).newbyteorder('=' if self.order == '|' else self.order)  # type: ignore[arg-type]


class _Array:
    """Stands for numpy.ndarray: holds shape, dtype and bytes until they are checked."""

    def __init__(self) -> None:
        self.state: tuple | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused('an array in a form that numpy does not write')
        self.state = state[1:]

    def resolve(self) -> np.ndarray:
        if self.state is None:
            raise _Refused('an array without content')
        shape, dtype, fortran, raw = self.state
        if isinstance(raw, str):  # the bytes of a pickle that Python 2 wrote
            raw = raw.encode('latin-1')
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
            raise _Refused('an array of objects, expected plain numbers')
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise _Refused(f'an array of shape {shape!r}')
        resolved = dtype.resolve()
        if prod(shape) * resolved.itemsize != len(raw):
            raise _Refused(f'an array of shape {shape} and dtype {resolved} with {len(raw)} bytes')
        return np.frombuffer(raw, resolved).reshape(shape, order='F' if fortran else 'C')


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (shape, dtype, order == 'F', raw)
    return array


def _scalar(dtype: Any, raw: Any) -> _Array:
    return _frombuffer(raw, dtype, (), 'C')


def _latin1(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 write bytes; only with this encoding."""
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise _Refused(f'text encoded as {encoding!r}')
    return text.encode('latin-1')


class _StandIn:
    """What a name in a pickle is read as: it can be called, and a pickle that wants to change it is refused."""

    __slots__ = ('_make',)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *parts: Any) -> Any:
        return self._make(*parts)

    def __setstate__(self, state: object) -> None:
        raise _Refused('an order to change what reads it, expected nothing but arrays; nothing of it was run')


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, tuples, numbers, text and numpy arrays; anything else that a pickle names is refused.

    Nothing named is ever imported: every name that is let through stands for a class or function of this file.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('_codecs', 'encode'):
            return _StandIn(_latin1)
        if (module, name) in (('builtins', 'bytearray'), ('__builtin__', 'bytearray')):
            return _StandIn(bytearray)
        if (module, name) not in _ARRAYS:
            raise _Refused(f'{module}.{name}, expected nothing but arrays; nothing of it was run')
        makers: dict[str, Callable[..., Any]] = {
            'ndarray': _Array, 'dtype': _Dtype, 'scalar': _scalar, '_frombuffer': _frombuffer,
            '_reconstruct': lambda *parts: _Array(),
        }
        return _StandIn(makers[name])

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused('a reference to something outside, expected nothing but arrays')


def load_arrays(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """The arrays (and lists of numbers) of a pickled dictionary.

    Raises:
        ValueError: if the file is not such a pickle, or names anything but arrays and plain containers.
    """
    try:
        content = _ArraysOnly(file, encoding='latin1').load()
        if not isinstance(content, dict):
            raise _Refused(f'a {type(content).__name__}, expected a dictionary of arrays')
        arrays = {}
        for key, value in content.items():
            key = key.decode('latin-1') if isinstance(key, bytes) else key
            if isinstance(value, _Array):
                arrays[key] = value.resolve()
            elif isinstance(value, list):
                items = [item.resolve()[()] if isinstance(item, _Array) else item for item in value]
                if items and all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in items):
                    arrays[key] = np.array(items)
        return arrays
    except _Refused as error:
        raise ValueError(f'{path}: refused, it holds {error}') from error
    except Exception as error:  # a broken pickle raises what it likes
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'{path}: not a readable pickle ({reason}); get the file again') from error


def _convert(args: argparse.Namespace) -> str:
    path, output = Path(args.pickle), Path(args.output)
    if output.suffix != '.npz':
        raise ValueError(f'--output {output}: expected a name that ends in .npz')
    if output.exists() and not args.overwrite:
        raise ValueError(f'{output} is already there; give another --output, or --overwrite to replace it')
    if not output.parent.is_dir():
        raise ValueError(f'--output {output}: there is no folder {output.parent}; make it first')
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; check the path')
    with open(path, 'rb') as file:
        arrays = load_arrays(file, path)
    for key in (args.image_key, args.label_key):
        if key not in arrays:
            raise ValueError(
                f'{path}: has no array {key!r}, it holds {", ".join(map(str, arrays)) or "none"}; '
                f'see --image-key and --label-key')
    image, label = arrays[args.image_key], arrays[args.label_key]
    if image.dtype != np.uint8 or image.ndim != 4 or 0 in image.shape:
        raise ValueError(f'{path}: {args.image_key!r} is {image.shape} {image.dtype}, expected (N, H, W, C) uint8')
    if image.shape[3] not in (1, 3):
        if image.shape[1] not in (1, 3):
            raise ValueError(f'{path}: {args.image_key!r} has shape {image.shape}, expected 1 or 3 channels')
        image = image.transpose(0, 2, 3, 1)
    if label.dtype.kind not in 'iu' or label.shape != (len(image),):
        raise ValueError(
            f'{path}: {args.label_key!r} is {label.shape} {label.dtype} for {len(image)} images, expected whole '
            f'numbers ({len(image)},)')
    outside = (label < 0) | (label >= args.num_classes)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(
            f'{path}: {args.label_key!r} is {label[index]} at index {index}, expected 0 to {args.num_classes - 1}')
    write_arrays(output, image, label.astype(np.int64))
    size = 'x'.join(map(str, image.shape[1:]))
    return f'{output}: {len(image)} images {size}, labels from {label.min()} to {label.max()}'


def main(argv: list[str] | None = None) -> int:
    """Run the command; the return value is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('pickle', help='the file to convert')
    parser.add_argument('--output', required=True, help='archive to write, NAME.npz')
    parser.add_argument('--num-classes', type=int, default=10, help='labels lie below it (default: 10)')
    parser.add_argument('--image-key', default='data', help='(default: data)')
    parser.add_argument('--label-key', default='extrapolated_targets', help='(default: extrapolated_targets)')
    parser.add_argument('--overwrite', action='store_true', help='replace the archive if it is there')
    args = parser.parse_args(argv)
    return run(lambda: _convert(args), print)


if __name__ == '__main__':
    sys.exit(main())
