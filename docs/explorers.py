"""The two explorers of this site: their data, and the directive `{explorer} activations` or `{explorer} models`.

The pages compute and draw in the browser (`_static`); what they start from is collected here. Results and the paths of
alpha and beta in our own runs come from docs/results/*.json, each the results.json of a sweep
(`timm_paf.engine.sweep_table.summarize`); there may be none. The name of such a file is that of its configuration.
"""
import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch.utils.flop_counter import FlopCounterMode

from timm_paf.activations import ACTIVATIONS, shape
from timm_paf.engine.sweep_table import ATTACKS, Group, read_groups
from timm_paf.evaluation.statistics import mean_interval
from timm_paf.models._variants import VARIANT_ACTIVATIONS

# without parameters; in _static/activation-math.js too
OTHERS = ('relu', 'leaky_relu', 'elu', 'silu', 'gelu', 'mish', 'softplus')
SLIDER_END = {'alpha': 5., 'beta': math.inf}  # sliders end here, or at the end of the valid range; fields do not

# files in _static, in the order in which they run
SCRIPTS = {
    'activations': ('explorer.js', 'activation-math.js', 'explorer-activations.js'),
    'models': ('explorer.js', 'explorer-models.js')}

# names of archives in our runs; the images were saved as JPEG, see results.md
DATASETS = {
    'data/cifar10_16/train.npz': 'CIFAR-10 (JPEG), 16x16', 'data/cifar10/train.npz': 'CIFAR-10 (JPEG)',
    'data/cifar10_16/train_2500.npz': 'CIFAR-10 (JPEG), 16x16, 2 000 images'}
CONFIGS = Path(__file__).resolve().parents[1] / 'recipes' / 'configs'


def activations_data(results: Path) -> dict[str, Any]:
    """The activations with the ranges of their parameters, and the paths of alpha and beta in our runs."""
    activations: dict[str, dict[str, Any]] = {name: {} for name in OTHERS}
    for name, module in ACTIVATIONS.items():
        for parameter, spec in module.parameter_specs.items():
            bounded = spec.greatest < math.inf  # the formula then takes the absolute value
            end = min(spec.greatest, SLIDER_END[parameter])
            activations.setdefault(name, {})[parameter] = {
                'init': spec.init, 'least': spec.least, 'greatest': spec.greatest if bounded else None,
                'slider': [0. if bounded else -end, end]}
    return {'activations': activations, 'mean_range': shape.MEAN_RANGE, 'paths': list(_paths(results))}


def models_data(results: Path) -> dict[str, Any]:
    """Architectures with their size, activations with their number of learned parameters, and rows of results."""
    return {
        'architectures': {arch: _size(arch) for arch in _architectures()},
        'activations': {
            name: sum(spec.learnable for spec in ACTIVATIONS[name].parameter_specs.values()) if name in ACTIVATIONS
            else 0 for name in VARIANT_ACTIVATIONS},
        'rows': [_row(group, file, content) for file, content, group in _groups(results)]}


def fragment(name: str, results: Path) -> str:
    """HTML of an explorer, 'activations' or 'models': a place for it, and its data."""
    data = {'activations': activations_data, 'models': models_data}[name](results)
    text = json.dumps(data, allow_nan=False).replace('<', '\\u003c')  # no text of the data can end the script
    return (f'<div class="explorer" id="{name}-explorer"><noscript><p>This part of the page needs JavaScript.</p>'
            f'</noscript></div>\n<script type="application/json" id="{name}-data">{text}</script>')


def _groups(results: Path) -> Iterator[tuple[Path, Mapping[str, Any], Group]]:
    for file in sorted(results.glob('*.json')):
        content = json.loads(file.read_text())
        for group in read_groups(content):
            yield file, content, group


def _arch(group: Group) -> str:
    model, own = group.fact('model'), f'_{group.activation}'
    return model.removesuffix(own) if model.endswith(own) else model.removesuffix('_relu')  # the sweep's two names


def _dataset(content: Mapping[str, Any]) -> str:
    return DATASETS.get(content['dataset'], content['dataset'])


def _row(group: Group, file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A group of runs that differ only in their seed: means and the t intervals of the report, best checkpoints."""
    row = {
        'activation': group.activation, 'setting': ', '.join(filter(None, (group.parameters, group.option_text))),
        'arch': _arch(group), 'dataset': _dataset(content), 'seeds': len(group.best), 'epochs': group.fact('epochs'),
        'hours': group.mean('seconds') / 3600, 'date': content['date'], 'machine': content['machine'],
        'source': file.stem, 'command': f'python recipes/shape_sweep.py -c {file.stem}'
        if (CONFIGS / f'{file.stem}.yaml').exists() else None}
    measured = [f'{content["norm"]} eps {content["eps"]}']
    for attack, title in ATTACKS.items():
        if values := list(group.values(attack).values()):
            row[attack], low, high, _ = mean_interval(values)
            row |= {f'{attack}_low': max(low, 0.), f'{attack}_high': min(high, 100.)}
            parts = f' ({content["autoattack_parts"]})' if attack == 'autoattack' else ''
            measured.append(f'{title}{parts} on {group.mean(f"{attack}_images"):.0f} images')
    row['measured'] = ', '.join(measured)
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def _paths(results: Path) -> Iterator[dict[str, Any]]:
    """The path of each run; values outside of the valid range as the formula limits them."""
    for file, content, group in _groups(results):
        if group.activation in ACTIVATIONS:
            specs = ACTIVATIONS[group.activation].parameter_specs
            given = {name: float(value) for name, value in (item.split('=') for item in group.given.split())}
            for seed, path in group.paths.items():
                epochs = []
                for epoch, *values in path:
                    point = {name: given.get(name, spec.init) if value is None else value
                             for (name, spec), value in zip(specs.items(), values, strict=False)}
                    if all(math.isfinite(value) for value in point.values()):
                        epochs.append({'epoch': epoch, **{name: specs[name].clamp(v) for name, v in point.items()}})
                if epochs:
                    yield {'label': f'{group.label()}, seed {seed}, {file.stem}', 'activation': group.activation,
                           'arch': _arch(group), 'dataset': _dataset(content), 'epochs': epochs}


def _architectures() -> Iterator[str]:
    """Every architecture that is registered with all activations."""
    names = set(timm.list_models())
    for name in timm.list_models():
        arch = name.removesuffix(f'_{VARIANT_ACTIVATIONS[-1]}')
        if arch != name and all(f'{arch}_{activation}' in names for activation in VARIANT_ACTIVATIONS):
            yield arch


@functools.cache
def _size(arch: str) -> dict[str, Any]:
    """Input size, parameters without those of the activation, and multiply-adds for one image.

    The network is on the meta device, where nothing is computed.
    """
    name = f'{arch}_relu'
    model = timm.create_model(name, device='meta').eval()
    size: Any = timm.get_pretrained_cfg_value(name, 'input_size')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *size, device='meta'))
    return {'input': '×'.join(map(str, size)), 'parameters': sum(p.numel() for p in model.parameters()),
            'multiply_adds': counter.get_total_flops() // 2}


class Explorer(SphinxDirective):
    """Put an explorer at this place of a page."""
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        results = Path(self.env.srcdir) / 'results'
        for file in (*results.glob('*.json'), Path(__file__)):
            self.env.note_dependency(str(file))
        self.env.metadata[self.env.docname]['explorer'] = self.arguments[0]
        return [nodes.raw('', fragment(self.arguments[0], results), format='html')]


def _add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if name := app.env.metadata.get(page, {}).get('explorer'):
        app.add_css_file('explorer.css')
        for script in SCRIPTS[name]:
            app.add_js_file(script, loading_method='defer')


def setup(app: Sphinx) -> None:
    """Add the directive to Sphinx."""
    app.add_directive('explorer', Explorer)
    app.connect('html-page-context', _add_scripts)
