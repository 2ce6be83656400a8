"""The targets that a GPU decides beside what the parts of gpu.sh have measured.

    python recipes/benchmarks/gpu_table.py output/gpu

Reads the JSON files of a folder, and writes the table there as table.md too; a figure that none of them has is not
measured. Of several settings (eager, compiled) the best one counts, and is named; beside the ReLU twin, the fastest
one. On a CPU figures are shown and no
target is judged.
"""
import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _benchmarking import chosen_device, device_name

from timm_paf.evaluation import library_versions

Measures = dict[str, dict[str, dict[str, Any]]]  # file -> name of a figure -> figure
Found = tuple[float, str] | None  # a value, and with which setting


class Target(NamedTuple):
    """What is measured, how it is found, and its bound: at most, or at least where `least` is set."""
    what: str
    value: Callable[[Measures], Found]
    bound: float
    least: bool = False
    unit: str = ''

    def met(self, value: float) -> bool:
        """Whether a value is inside the bound."""
        return value >= self.bound if self.least else value <= self.bound

    @property
    def text(self) -> str:
        """The bound in words."""
        return f'{"≥" if self.least else "≤"} {self.bound:g}{self.unit}'


def figure(files: str, pattern: str, best: Callable[..., float] = min) -> Callable[[Measures], Found]:
    """The best of all figures with a matching name, and how the part of it in brackets reads."""
    def value(measures: Measures) -> Found:
        found = {}
        for file, figures in measures.items():
            for name, one in figures.items():
                match = re.fullmatch(pattern, name) if re.fullmatch(files, file) else None
                if match:
                    found[one['value']] = match.group(1) if match.groups() else ''
        return (best(found), found[best(found)]) if found else None
    return value


def of_the_fastest(files: str, pattern: str, speed: str) -> Callable[[Measures], Found]:
    """A figure with the setting for which another one, the speed, is highest; both name the setting in brackets."""
    def value(measures: Measures) -> Found:
        fastest = figure(files, speed, max)(measures)
        return None if fastest is None else figure(files, pattern.replace(SETTING, f'({fastest[1]})'), max)(measures)
    return value


def quotient(files: str, pattern: str, other: str) -> Callable[[Measures], Found]:
    """One figure over another."""
    def value(measures: Measures) -> Found:
        pair = figure(files, pattern)(measures), figure(files, other)(measures)
        return None if pair[0] is None or pair[1] is None or not pair[1][0] else (pair[0][0] / pair[1][0], '')
    return value


def extra_tensors(measures: Measures) -> Found:
    """Tensors that the activation keeps: its input, and what it keeps beside."""
    found = figure('activations', 'pssilu, fused: kept')(measures)
    return None if found is None else (1 + found[0], '')


def in_noise(measures: Measures) -> Found:
    """Size of the difference of the robust accuracies over the noise of it."""
    difference = figure('short_run', 'difference of the means')(measures)
    noise = figure('short_run', 'noise of it')(measures)
    if difference is None or noise is None:
        return None
    ratio = abs(difference[0]) / noise[0] if noise[0] else math.inf if difference[0] else 0.
    return ratio, f'{difference[0]:+.1f} points'


WIDE, NARROW, SETTING = r'wrn\d+_\d+', 'resnet18', r'(\w+, \w+)'
TARGETS = (
    Target('PSSiLU fused, bf16, forward + backward, over nn.SiLU',
           figure('activations', r'pssilu, fused: forward \+ backward over SiLU'), 1.05, unit='x'),
    Target('… over the time of a copy of what has to move',
           figure('activations', r'pssilu, fused: forward \+ backward over the floor'), 1.1, unit='x'),
    Target('PSSiLU fused, bf16, gradient of x alone, over nn.SiLU',
           figure('activations', 'pssilu, fused: gradient of x alone over SiLU'), 1.2, unit='x'),
    Target('kept for backward, PSSiLU, BatchNorm computed anew, over ReLU in place',
           quotient('step_wide', rf'{WIDE}_pssilu, BatchNorm computed anew: kept for the backward pass',
                    rf'{WIDE}_relu: kept for the backward pass'), 1., unit='x'),
    Target('kept by each PSSiLU without that', extra_tensors, 1, unit=' tensors'),
    Target('PGD-10 update, WRN with PSSiLU, images/s over its ReLU twin',
           of_the_fastest('step_wide', rf'{WIDE}_pssilu, {SETTING}: over {WIDE}_relu',
                          rf'{WIDE}_pssilu, {SETTING}: images/s'), 0.95, True, 'x'),
    Target('PGD-10 update, WRN with PSSiLU, images/s over the plain float32 loop',
           figure('step_wide', rf'{WIDE}_pssilu, {SETTING}: over the plain loop in fp32', max), 4, True, 'x'),
    Target('PGD-10 update, ResNet-18 with PSSiLU, images/s over the plain float32 loop',
           figure('step_.*', rf'{NARROW}_pssilu, {SETTING}: over the plain loop in fp32', max), 4, True, 'x'),
    Target('PGD-10 update over its 12 forward and 11 backward passes, ResNet-18 with PSSiLU, float32',
           figure('step_narrow', r'\w+_pssilu, (fp32, eager): overhead over the passes'), 5, unit=' %'),
    Target('robust accuracy after a short run, difference from the plain loop over its noise', in_noise, 1, unit='x'),
    Target('AutoAttack, time over pyautoattack called directly, same verdicts',
           figure('autoattack', 'all: here over package'), 0.7, unit='x'),
    Target('PGD-10, time over bare passes', figure('attack', 'timm_paf: over the floor'), 1.02, unit='x'),
    Target('share of a PGD-10 update spent waiting for images',
           figure('data', r'\w+, PGD-10, batch \d+: share of a step spent waiting'), 1, unit=' %'),
)


def read(folder: Path, device: str) -> tuple[Measures, list[str]]:
    """The figures of every JSON file of a folder, by name, and which files are from another device."""
    found, others = {}, []
    for path in sorted(folder.glob('*.json')):
        contents = json.loads(path.read_text())
        kinds = {name if name[:3] != 'CPU' else 'CPU' for name in (contents['device'], device)}  # threads are no matter
        if len(kinds) > 1:
            others.append(path.name)
        else:
            found[path.stem] = {measure['name']: measure for measure in contents['measures']}
    return found, others


def table(measures: Measures, *, judged: bool) -> list[str]:
    """Markdown: a row for each target."""
    lines = ['| what | target | measured | |', '| --- | ---: | ---: | --- |']
    for target in TARGETS:
        found = target.value(measures)
        if found is None:
            lines.append(f'| {target.what} | {target.text} | | not measured |')
            continue
        value, setting = found
        verdict = ('met' if target.met(value) else 'missed') if judged else 'not judged: no GPU'
        lines.append(f'| {target.what} | {target.text} | {value:.3g}{target.unit}{f" ({setting})" if setting else ""} '
                     f'| {verdict} |')
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('folder', type=Path, help='with the JSON files')
    parser.add_argument('--device', default='cuda', help='what they were measured on')
    args = parser.parse_args(argv)
    try:
        device = chosen_device(args.device)
        name = device_name(device)
        measures, others = read(args.folder, name)
    except (ValueError, KeyError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    versions = library_versions()
    lines = [f'{name}, torch {versions["torch"]}, timm {versions["timm"]}, Python {versions["python"]}', '',
             *table(measures, judged=device.type == 'cuda')]
    print('\n'.join(lines))
    if others:
        print(f'left out, since they are from another device: {", ".join(others)}')
    (args.folder / 'table.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
