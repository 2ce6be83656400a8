"""What the headers of images and labels have to say, and which axis of the images is which."""

from math import prod

import numpy as np

from timm_paf.data.errors import BadArchive
from timm_paf.data.headers import Header

LAYOUTS = ('NHWC', 'NCHW', 'HWCN', 'CHWN')
_CHANNELS = (1, 3)  # what may be taken for a channel axis when the caller does not say


def check_image_header(image: Header) -> None:
    """Make sure that an array may be images.

    Raises:
        ValueError: if its dtype or number of axes is none that images have, or it is empty.
    """
    if image.dtype != np.uint8 and image.dtype.kind != 'f':
        raise BadArchive(
            f'{image.where} is of dtype {image.dtype}, expected uint8 (0 to 255) or floats in [0, 1] or [0, 255]; '
            f'convert it'
        )
    if len(image.shape) != 4 or 0 in image.shape:
        raise BadArchive(
            f'{image.where} has shape {image.shape}, expected (N, H, W, C) or (N, C, H, W) with nothing empty; '
            f'reshape it'
        )


def check_label_header(label: Header, count: int, num_classes: int) -> None:
    """Make sure that an array may be the labels of `count` images: integers (count,) or floats (count, num_classes).

    Raises:
        ValueError: if it may not.
    """
    if len(label.shape) == 2 and label.dtype.kind == 'f':
        expected: tuple[int, ...] = (count, num_classes)
    elif label.dtype.kind in 'iu':
        expected = (count,)
    else:
        raise BadArchive(
            f'{label.where} is of dtype {label.dtype}, expected integers, or floats (N, {num_classes}) as soft labels; '
            f'convert it'
        )
    if label.shape != expected:
        raise BadArchive(f'{label.where} has shape {label.shape} for {count} images, expected {expected}')


def find_layout(image: Header, label: Header, channels: int | None, layout: str | None) -> str:
    """The names of the axes of the stored images.

    Args:
        image: their header, with four axes.
        label: the labels' header; its length tells whether the image axis is first or last.
        channels: number of channels; None for 1 or 3.
        layout: one of `LAYOUTS` if it is known.

    Raises:
        ValueError: if no layout fits, or more than one.
    """
    shape, accepted = image.shape, _CHANNELS if channels is None else (channels,)
    count = label.shape[0] if label.shape else 0
    last = layout in LAYOUTS[2:] if layout else shape[0] != count and shape[3] == count
    readings = LAYOUTS[2:] if last else LAYOUTS[:2]
    fitting = [name for name in readings if shape[name.index('C')] in accepted and layout in (None, name)]
    if not fitting:
        wanted, places = ' or '.join(map(str, accepted)), 'first or third' if last else 'last or second'
        raise BadArchive(
            f'{image.where} has shape {shape}, expected {wanted} channels, {places}'
            f'{f" ({layout})" if layout else ""}; is this archive made for another data set?'
        )
    if len(fitting) == 2 and prod(shape) != count:
        raise BadArchive(
            f'{image.where} has shape {shape}, which may be {fitting[0]} or {fitting[1]}; say which with layout=')
    return fitting[0]
