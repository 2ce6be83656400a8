"""What benchmarks need: a clock that waits for the device, memory, words and files for results, a real network."""
import datetime
import importlib.util
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from timm_paf._files import whole_file
from timm_paf.evaluation import library_versions

__all__ = [
    'Figure', 'chosen_device', 'command_line', 'device_name', 'half_quartiles', 'kept_bytes', 'peak_bytes',
    'range_text', 'ratio', 'ratios', 'seconds', 'shipped_network', 'spread', 'summary_line', 'write_figures']


def chosen_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: If torch has none.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without it
        raise ValueError(f'--device {name}: {str(error).splitlines()[0]}') from None


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Time of an action, the device's work included: by the device's own events on a GPU, else by the wall clock."""
    if device.type != 'cuda':
        started = time.perf_counter()
        action()
        return time.perf_counter() - started
    with torch.cuda.device(device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        action()
        last.record()
        torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def peak_bytes(action: Callable[[], object], device: torch.device) -> int | None:
    """The most that an action allocates on a GPU beyond what is allocated already; None on a CPU, where none counts."""
    if device.type != 'cuda':
        action()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that stay allocated after a forward pass for the backward pass, beside the output."""
    model(x)  # what is made once
    if x.device.type == 'cuda':
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device)
        y = model(x)
        return torch.cuda.memory_allocated(x.device) - before - y.untyped_storage().nbytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = model(x)
    assert record.profiler is not None
    total = sum(e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == '[memory]')
    return total - y.untyped_storage().nbytes()


def half_quartiles(values: Sequence[float]) -> float:
    """Half the distance of the quartiles; 0 of one value."""
    if len(values) < 2:
        return 0.
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def spread(values: Sequence[float]) -> str:
    """Median, and half the distance of the quartiles."""
    median = statistics.median(values)
    digits = 1 if median >= 10 else 2 if median >= 1 else 4
    return f'{median:.{digits}f} ± {half_quartiles(values):.{digits}f}'


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratio within each round."""
    return [a / b for a, b in zip(values, others, strict=True)]


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(ratios(values, others))


def range_text(values: Sequence[float], form: str = '.2f') -> str:
    """Median, smallest and largest."""
    return f'{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})'


class Figure(NamedTuple):
    """A measured number: the values of all rounds, of which the median counts."""
    name: str
    values: Sequence[float]
    unit: str = ''

    def plain(self) -> dict[str, Any]:
        """The figure as JSON holds it."""
        return {
            'name': self.name, 'value': statistics.median(self.values), 'spread': half_quartiles(self.values),
            'rounds': len(self.values), 'unit': self.unit}


def command_line(argv: Sequence[str] | None = None) -> str:
    """The whole command as it was given, with paths as they are seen from the working folder.

    Args:
        argv: Script and arguments; those of the process if None.
    """
    words = []
    for number, word in enumerate(sys.argv if argv is None else argv):
        path = Path(word)
        if number == 0 or path.is_absolute():
            near = os.path.relpath(path)
            word = path.name if near.startswith('..') else near
            if number == 0 and 'recipes' in path.resolve().parts:
                parts = path.resolve().parts
                word = '/'.join(parts[len(parts) - 1 - parts[::-1].index('recipes'):])
        words.append(word)
    return shlex.join(['python', *words])


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU with its threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU ({platform.machine().replace("_", "-")}, {torch.get_num_threads()} of {os.cpu_count()} cores)'


def summary_line(device: torch.device, argv: Sequence[str] | None = None) -> str:
    """Command, date, versions and device, for below a table."""
    versions = ', '.join(
        f'{name} {version.split("+")[0]}' for name, version in library_versions().items() if version != 'unknown')
    return f'`{command_line(argv)}`, {datetime.date.today()}, {versions}, {device_name(device)}'


def write_figures(
        path: Path,
        figures: Sequence[Figure],
        device: torch.device,
        argv: Sequence[str] | None = None,
) -> None:
    """Write figures as JSON, with what made them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as whole:
        whole.write((json.dumps({
            'command': command_line(argv), 'date': str(datetime.date.today()), 'versions': library_versions(),
            'device': device_name(device), 'measures': [figure.plain() for figure in figures]},
            indent=2) + '\n').encode())


def shipped_network() -> tuple[nn.Module, Tensor, Tensor]:
    """The CIFAR-10 ResNet-18 that pyautoattack ships, and foolbox's 20 images (20, 3, 32, 32) in [0, 1] with labels."""
    import foolbox
    import pyautoattack
    examples = Path(pyautoattack.__file__).parent / 'examples'
    spec: Any = importlib.util.spec_from_file_location('pyautoattack_resnet', examples / 'resnet.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.ResNet18()
    model.load_state_dict(torch.load(examples / 'model_test.pt', map_location='cpu', weights_only=True))
    files = sorted((Path(foolbox.__file__).parent / 'data').glob('cifar10_*.png'))
    images = np.stack([np.asarray(Image.open(file).convert('RGB')) for file in files])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    return model.eval(), x, torch.tensor([int(file.stem.rsplit('_', 1)[1]) for file in files])
