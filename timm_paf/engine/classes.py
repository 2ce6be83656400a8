"""Classes of a run: the names of the training images number the classes of all other images."""
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from timm_paf._distributed import Processes
from timm_paf.data import ImageSource, check_classes, class_names, match_classes

__all__ = ['by_number', 'check_same_classes', 'label_names', 'match_training', 'names_difference']


def match_training(
        source: ImageSource, names: Sequence[str], *, num_classes: int | None) -> tuple[Any, tuple[str, ...]]:
    """Number the classes of the training images by `names`; returns the images and the names of the run.

    Args:
        source: Training images.
        names: --class-names, or those of the run to resume; if empty, those of the images hold, which may be none.
        num_classes: --num-classes, if it is given.

    Raises:
        ValueError: If the images have other classes, or another number of them.
    """
    own = class_names(source)
    if len(set(names)) < len(names):
        raise ValueError(f'--class-names: {len(names)} names, of which {len(set(names))} differ; give each name once.')
    if names and own is not None:
        matched = match_classes(source, names, other="run's")
        if len(own) < len(names):
            check_classes(matched)  # names the class that is missing
        if hasattr(source, 'prefetch') and not hasattr(matched, 'prefetch'):
            raise ValueError(f'{source.name}: a stream keeps its order of classes; give --class-names {" ".join(own)}')
        source = matched
    for flag, count in (('--class-names', len(names) or None), ('--num-classes', num_classes)):
        if count not in (None, source.num_classes):
            raise ValueError(
                f'{flag}: {count} classes, but {source.name} has {source.num_classes}; correct or leave out {flag}.')
    names = tuple(names) or own or ()
    if wrong := [name for name in names if name != name.encode(errors='replace').decode()]:
        raise ValueError(f'{source.name}: the class name {wrong[0]!r} is not UTF-8, and reports need it; rename it.')
    return source, names


def by_number(names: Sequence[str], others: Mapping[str, Any], *, whose: str) -> list[str]:
    """A line for each of the other images whose classes are compared by number, because only one side has names.

    Args:
        names: Names of the run; empty if there are none. Names that are the numbers need no line.
        others: Images by what they are.
        whose: Who has `names`, for the lines.
    """
    lines = []
    for what, source in others.items():
        own = None if source is None else class_names(source)
        known = own or tuple(names)
        if source is not None and bool(own) != bool(names) and known != tuple(map(str, range(len(known)))):
            lacking = whose if own else getattr(source, 'name', 'the folder')
            lines.append(f'{what}: classes are compared by number, since {lacking} has no class names')
    return lines


def check_same_classes(processes: Processes, names: Sequence[str], source: ImageSource) -> None:
    """Raise ValueError in every process if the training images of processes differ, such as folders of two nodes."""
    found = processes.all_gather_object((tuple(names), source.num_classes, len(source)))
    for rank, other in enumerate(found):
        if other != found[0]:
            difference = names_difference(found[0][0], other[0]) or f'{found[0][1:]} and {other[1:]}'
            raise ValueError(
                f'{source.name}: processes 0 and {rank} have different classes or numbers of images ({difference}); '
                'give all nodes the same data.')


def names_difference(old: Sequence[str], new: Sequence[str]) -> str:
    """How class names differ, in words; empty if they do not."""
    gone, added = ([name for name in one if name not in known] for one, known in ((old, set(new)), (new, set(old))))
    parts = [f'{word} {", ".join(names[:5])}{" …" if len(names) > 5 else ""}'
             for word, names in (('without', gone), ('with', added)) if names]
    return ', '.join(parts) or ('in another order' if list(old) != list(new) else '')


def label_names(model: nn.Module | None) -> tuple[str, ...]:
    """Class names in timm's `pretrained_cfg` of a model; empty if there are none, or not one per class."""
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names') or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(names) if len(names) == getattr(model, 'num_classes', None) else ()
