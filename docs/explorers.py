"""The two explorers of this site: their data, and the directive `{explorer} activations` or `{explorer} models`.

The pages compute and draw in the browser (`_static`); what they start from is collected here. Data of our
own runs are files in docs/results, and there may be none:

- `paths.json`, a list of {label, activation, arch, dataset, epochs}: alpha and beta of one run. `label` is unique;
  `epochs` is a list of {epoch, alpha, beta} (from 0; those parameters that the activation has), as
  `timm_paf.engine.sweep_table.read_path` returns it.
- every other `NAME.json`, one experiment: {title, dataset, arch, command, date, machine, rows}. Each row is a group of
  runs that differ only in their seed: {activation, parameters (in words, as 'fixed alpha=2'; may be ''), seeds (how
  many), clean, pgd, autoattack (accuracies in percent, means over the seeds), clean_interval, pgd_interval,
  autoattack_interval ([low, high], 95 %), epochs, hours (of one run)}. Everything from `pgd` on may be missing.
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
from timm_paf.models._variants import VARIANT_ACTIVATIONS

# without parameters; in _static/activation-math.js too
OTHERS = ('relu', 'leaky_relu', 'elu', 'silu', 'gelu', 'mish', 'softplus')
SLIDER_END = {'alpha': 5., 'beta': math.inf}  # sliders end here, or at the end of the valid range; fields do not

# files in _static, in the order in which they run
SCRIPTS = {
    'activations': ('explorer.js', 'activation-math.js', 'explorer-activations.js'),
    'models': ('explorer.js', 'explorer-models.js')}

EXPERIMENT = {'title', 'dataset', 'arch', 'command', 'date', 'machine', 'rows'}
REQUIRED = {'activation', 'parameters', 'seeds', 'clean', 'clean_interval'}
ROW = REQUIRED | {'pgd', 'pgd_interval', 'autoattack', 'autoattack_interval', 'epochs', 'hours'}
PATH = {'label', 'activation', 'arch', 'dataset', 'epochs'}


def activations_data(results: Path) -> dict[str, Any]:
    """The activations with the ranges of their parameters, and the paths of alpha and beta in our runs."""
    activations: dict[str, dict[str, Any]] = {name: {} for name in OTHERS}
    for name, module in ACTIVATIONS.items():
        for parameter, spec in module.parameter_specs.items():
            bounded = spec.greatest < math.inf  # the formula then takes the absolute value
            end = min(spec.greatest, SLIDER_END[parameter])
            activations.setdefault(name, {})[parameter] = {
                'init': spec.init, 'learnable': spec.learnable, 'least': spec.least,
                'greatest': spec.greatest if bounded else None, 'slider': [0. if bounded else -end, end]}
    return {'activations': activations, 'mean_range': shape.MEAN_RANGE, 'paths': _paths(results / 'paths.json')}


def models_data(results: Path) -> dict[str, Any]:
    """Architectures with their size, activations with their number of learned parameters, and experiments."""
    experiments = []
    for file in sorted(results.glob('*.json')):
        if file.name != 'paths.json':
            experiment = json.loads(file.read_text())
            _check(experiment, EXPERIMENT, EXPERIMENT, file.name)
            for n, row in enumerate(experiment['rows']):
                _check(row, REQUIRED, ROW, f'{file.name}, row {n}')
            experiments.append(experiment)
    return {
        'architectures': {arch: _size(arch) for arch in _architectures()},
        'activations': {
            name: sum(spec.learnable for spec in ACTIVATIONS[name].parameter_specs.values()) if name in ACTIVATIONS
            else 0 for name in VARIANT_ACTIVATIONS},
        'experiments': experiments}


def fragment(name: str, results: Path) -> str:
    """HTML of an explorer, 'activations' or 'models': a place for it, and its data."""
    data = {'activations': activations_data, 'models': models_data}[name](results)
    text = json.dumps(data, allow_nan=False).replace('<', '\\u003c')  # no text of the data can end the script
    return (f'<div class="explorer" id="{name}-explorer"><noscript><p>This part of the page needs JavaScript.</p>'
            f'</noscript></div>\n<script type="application/json" id="{name}-data">{text}</script>')


def _paths(file: Path) -> list[dict[str, Any]]:
    paths = json.loads(file.read_text()) if file.exists() else []
    labels = set()
    for n, path in enumerate(paths):
        label = f'{file.name}, path {n}'
        _check(path, PATH, PATH, label)
        if path['activation'] not in ACTIVATIONS:
            raise ValueError(f'docs/results/{label}: activation {path["activation"]}: expected one of '
                             f'{", ".join(ACTIVATIONS)}.')
        if path['label'] in labels:
            raise ValueError(f'docs/results/{label}: label {path["label"]!r} is there twice; give each path its own.')
        labels.add(path['label'])
        specs = ACTIVATIONS[path['activation']].parameter_specs
        for epoch in path['epochs']:
            _check(epoch, {'epoch', *specs}, {'epoch', 'alpha', 'beta'}, label)
            for parameter, spec in specs.items():
                spec.check(epoch[parameter], f'{label}: {parameter}')
    return paths


def _check(found: Mapping[str, Any], required: set[str], allowed: set[str], label: str) -> None:
    """Raise ValueError if keys are missing or unknown."""
    if not required <= found.keys() <= allowed:
        raise ValueError(f'docs/results/{label} has {", ".join(sorted(found))}; expected {", ".join(sorted(allowed))}, '
                         f'at least {", ".join(sorted(required))}. docs/explorers.py describes the format.')


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
    size = timm.get_pretrained_cfg_value(name, 'input_size')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *size, device='meta'))
    return {'input': '×'.join(map(str, size)), 'classes': model.num_classes,
            'parameters': sum(p.numel() for p in model.parameters()), 'multiply_adds': counter.get_total_flops() // 2}


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
