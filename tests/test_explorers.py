"""Results in the documentation: pages; and the explorers, in a browser: numbers, links, filters and CSV."""
import csv
import importlib.util
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from timm_paf.activations import ACTIVATIONS, functional, shape

pytest.importorskip('sphinx', reason="needs the extra 'docs'")
DOCS = Path(__file__).resolve().parents[1] / 'docs'


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


explorers, figures = load('explorers'), load('figures')

OTHERS = {
    'relu': torch.relu, 'leaky_relu': torch.nn.functional.leaky_relu, 'elu': torch.nn.functional.elu,
    'silu': torch.nn.functional.silu, 'gelu': torch.nn.functional.gelu, 'mish': torch.nn.functional.mish,
    'softplus': lambda x: torch.nn.functional.softplus(x, threshold=1e9)}  # torch's is a line from 20 on
VALUES = {'alpha': (-1e4, -1., -0.2, 0., 1e-3, 0.5, 1., 2.4, 1e4), 'beta': (-0.3, 0., 1e-8, 0.3, 0.5, 0.7, 0.99)}
X = [sign * 10 ** (n / 4) for n in range(-24, 13) for sign in (-1, 1)] + [0.]


def cases():
    yield from ((name, {}) for name in OTHERS)
    for name, module in ACTIVATIONS.items():
        specs = module.parameter_specs
        for values in itertools.product(*([v for v in VALUES[p] if spec.least <= abs(v) <= spec.greatest]
                                          for p, spec in specs.items())):
            yield name, dict(zip(specs, values, strict=True))


CASES = list(cases())


def group(activation, clean, robust, *, learned=False, given='', paths=()):
    """A group of three runs in results.json, whose 95 % intervals are about one point to each side."""
    best = {'clean': [clean + d for d in (-0.4, 0, 0.4)], 'autoattack': [robust + d for d in (-0.4, 0, 0.4)],
            'clean_images': 3 * [5000], 'autoattack_images': 3 * [1000], 'seconds': [3600., 5400., 7200.]}
    return {'activation': activation, 'learned': learned, 'given': given, 'options': {'lr': '0.1', 'task': 'a, "b"'},
            'model': 'wrn10_2_relu' if activation == 'gelu' else f'wrn10_2_{activation}', 'lr': 0.1, 'epochs': 40,
            'seeds': [0, 1, 2], 'best': best, 'last': best, 'paths': list(paths)}


PATH = [[n + 1, 1 + n / 10, n / 100] for n in range(20)]
RESULTS = {
    'dataset': 'digits', 'norm': 'linf', 'eps': '0.2', 'device': 'cpu', 'machine': 'one', 'threads': '1',
    'date': '2026-01-01', 'versions': {'torch': '2'}, 'autoattack_parts': 'apgd-ce', 'runs': 12, 'seconds': 1,
    'groups': [
        group('relu', 90., 40.), group('psilu', 91.5, 43., given='alpha=2'),
        group('pssilu', 80., 44.5, learned=True, paths=[PATH, PATH, [*PATH, [21, math.nan, 0.5], [22, 2e4, -3.]]]),
        group('gelu', 70., 30.)]}
RUN = 'pssilu, learned, lr 0.1, task a, "b", seed {}, sweep_digits'


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / 'results'
    folder.mkdir()
    (folder / 'sweep_digits.json').write_text(json.dumps(RESULTS))
    return folder


@pytest.fixture
def visit(browser, results, tmp_path):
    """Open an explorer, at a hash; its errors fail the test."""
    shutil.copytree(DOCS / '_static', tmp_path / '_static')
    errors, context = [], browser.new_context()
    context.set_default_timeout(10_000)

    def open_page(name, link=''):
        scripts = ''.join(f'<script src="_static/{script}"></script>' for script in explorers.SCRIPTS[name])
        file = tmp_path / f'{name}.html'
        file.write_text('<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="_static/explorer.css"><body>'
                        + explorers.fragment(name, results) + scripts, encoding='utf-8')
        page = context.new_page()
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.on('console', lambda message: errors.append(message.text))
        page.goto(file.as_uri() + link)
        return page

    yield open_page
    context.close()
    assert errors == []


def tables(page):
    return page.locator('#activations-explorer table').all_inner_texts()


def test_values_and_derivatives_are_those_of_the_package(visit):
    page = visit('activations')
    found = page.evaluate(
        '([cases, all]) => cases.map(([name, p]) => all.map(x => activationMath.jet(name, x, p)))', [CASES, X])
    for (name, parameters), mine in zip(CASES, found, strict=True):
        x = torch.tensor(X, dtype=torch.float64, requires_grad=True)
        results = [OTHERS[name](x) if name in OTHERS else getattr(functional, name)(x, **parameters)]
        for _ in range(2):
            results += torch.autograd.grad((results[-1] + 0 * x).sum(), x, create_graph=True)
        expected = torch.stack(results, 1).detach()
        mine = torch.tensor(mine, dtype=torch.float64)
        expected[-1, 2] = mine[-1, 2] = 0  # at a kink autograd's is that of neither side
        if name in OTHERS:  # and torch's are NaN or inexact far out
            kept = (x != 0) & (x.abs() < 10)
            expected, mine = expected[kept], mine[kept]
        size = expected.abs().amax(dim=0, keepdim=True)
        error = (mine - expected).abs() / (expected.abs() + 1e-3 * size + 1e-300)
        assert float(error.max()) < (1e-9 if name in OTHERS else 1e-12), (name, parameters)


def test_shape_numbers_are_those_of_the_package(visit):
    page = visit('activations')
    found = page.evaluate('cases => cases.map(([name, p]) => activationMath.describe(name, p))', CASES)
    for (name, parameters), mine in zip(CASES, found, strict=True):
        expected = shape.describe(name, **parameters)
        for field, value in mine.items():
            wanted = getattr(expected, field)
            if isinstance(wanted, str):
                assert value == wanted, (name, parameters, field)
            elif isinstance(wanted, float):
                assert value == pytest.approx(wanted, rel=1e-6, abs=1e-9), (name, parameters, field)
            else:
                flat = [torch.tensor(v, dtype=torch.float64).flatten().tolist() for v in (value, wanted)]
                assert flat[0] == pytest.approx(flat[1], rel=1e-6, abs=1e-9), (name, parameters, field)


def test_a_link_reproduces_the_view(visit):
    page = visit('activations')
    page.get_by_role('button', name='Remove relu').press('Enter')
    page.get_by_role('combobox', name='Activation').select_option('psoftplus')
    page.get_by_role('button', name='Add curve').press('Enter')
    page.get_by_label('alpha of psoftplus', exact=True).fill('3.6')
    page.get_by_role('combobox', name='Activation').select_option(label=RUN.format(0))
    page.get_by_role('button', name='Add curve').press('Enter')
    page.get_by_role('slider', name=RUN.format(0)).press('ArrowLeft')
    page.get_by_label('beta of pssilu, slider').press('ArrowRight')
    page.get_by_role('spinbutton', name='x from').fill('-2.5')
    page.get_by_role('spinbutton', name='Values at x =').fill('-1')
    page.wait_for_function("location.hash.includes('at=-1')")
    assert '#' in page.url
    again = visit('activations', '#' + page.url.partition('#')[2])
    assert tables(page) == tables(again)
    text = ' '.join(tables(again))
    assert 'psoftplus, alpha 3.6' in text and f'epoch 19 of {RUN.format(0)}' in text and 'beta 0.31' in text
    assert 'relu' not in text
    assert again.locator('#plot-value path.curve').evaluate_all('all => all.map(path => path.getAttribute("d"))') == (
        page.locator('#plot-value path.curve').evaluate_all('all => all.map(path => path.getAttribute("d"))'))


@pytest.mark.parametrize('wrong', ['10001', '-20000', ''])
def test_a_value_outside_its_range_is_refused(visit, wrong):
    page = visit('activations', '#a=psilu:2')
    before = tables(page)
    field = page.get_by_label('alpha of psilu', exact=True)
    field.fill(wrong)
    assert tables(page) == before
    assert field.get_attribute('aria-invalid') is not None
    assert '10000' in page.get_by_role('alert').filter(has_text='Expected').inner_text()
    field.fill('10000')
    assert field.get_attribute('aria-invalid') is None
    assert 'psilu, alpha 10000' in ' '.join(tables(page))


@pytest.mark.parametrize('given', ['nothing:1', 'psilu:20000', 'psilu:1:2', 'pssilu:x', 'run:nothing:99'])
def test_what_a_link_names_and_is_not_there_is_said(visit, given):
    page = visit('activations', f'#a=silu&a={given}')
    assert given in page.get_by_role('alert').filter(has_text='cannot').inner_text()
    assert 'silu' in tables(page)[0]


def activations_in_view(page):
    return page.locator('#models-explorer tbody th').all_inner_texts()


def test_filter_sort_and_marks_of_results(visit):
    page = visit('models')
    assert activations_in_view(page) == ['pssilu', 'psilu', 'relu', 'gelu']  # the strongest attack first
    cells = page.locator('#models-explorer tbody tr').all_inner_texts()
    assert [text.count('●') for text in cells] == [1, 2, 1, 0]  # 44.5 and 43; 91.5 and 90, whose intervals overlap
    page.get_by_role('button', name='clean').press('Enter')
    assert activations_in_view(page) == ['psilu', 'relu', 'pssilu', 'gelu']
    page.get_by_role('button', name='clean').press('Enter')
    assert activations_in_view(page) == ['gelu', 'pssilu', 'relu', 'psilu']
    assert page.locator('th[aria-sort]').get_attribute('aria-sort') == 'ascending'
    page.get_by_label('activation').select_option('psilu')
    assert activations_in_view(page) == ['psilu']
    page.get_by_label('only with results').press('Space')
    assert len(activations_in_view(page)) == len(explorers.models_data(Path('nowhere'))['architectures'])
    page.get_by_label('Chart: across').select_option('parameters')
    page.wait_for_function("location.hash.includes('x=parameters')")
    again = visit('models', '#' + page.url.partition('#')[2])
    assert again.locator('tbody').inner_text() == page.locator('tbody').inner_text()
    assert again.locator('#plot-models').inner_html() == page.locator('#plot-models').inner_html()


def test_csv_holds_what_is_in_view(visit):
    page = visit('models')
    with page.expect_download() as download:
        page.get_by_role('button', name='Save as CSV').press('Enter')
    with open(download.value.path(), newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['activation'] for row in rows] == ['pssilu', 'psilu', 'relu', 'gelu']
    assert [row['arch'] for row in rows] == 4 * ['wrn10_2']
    first, second = rows[:2]
    assert (first['setting'], second['setting']) == (
        'learned, lr 0.1, task a, "b"', 'fixed alpha=2, lr 0.1, task a, "b"')
    assert float(first['autoattack']) == pytest.approx(44.5)
    # Student's t: 0.975 quantile with two degrees of freedom
    assert float(first['autoattack_low']) == pytest.approx(44.5 - 4.302653 * 0.4 / math.sqrt(3))
    assert (first['hours'], first['epochs'], first['seeds']) == ('1.5', '40', '3')
    assert first['command'] == 'python recipes/shape_sweep.py -c sweep_digits' and first['pgd'] == ''
    assert first['measured'] == 'linf eps 0.2, clean on 5000 images, AutoAttack (apgd-ce) on 1000 images'


@pytest.mark.parametrize('name', ['wrn10_2_psilu', 'vgg11_relu', 'resnet18_224_pssilu', 'preact_resnet18_ssilu'])
def test_parameters_are_those_of_the_built_network(name):
    data = explorers.models_data(Path('nowhere'))
    arch, _, activation = name.rpartition('_')
    counted = sum(p.numel() for p in timm.create_model(name, device='meta').parameters())
    assert data['architectures'][arch]['parameters'] + data['activations'][activation] == counted


def test_multiply_adds_of_a_network_counted_by_hand():
    # WRN-10-2 on 32x32: convolutions 3x3 (1x1 in shortcuts) of 3, 16, 32, 64 and 128 channels, and 128 -> 10
    pixels = 32 * 32
    total = pixels * 9 * (3 * 16 + 16 * 32 + 32 * 32) + pixels * 16 * 32
    for width, side in ((64, 16), (128, 8)):
        total += side * side * (9 * (width // 2 * width + width * width) + width // 2 * width)
    assert explorers.models_data(Path('nowhere'))['architectures']['wrn10_2']['multiply_adds'] == total + 128 * 10


def test_a_path_stays_in_the_valid_range_and_leaves_out_what_is_not_finite(results):
    paths = explorers.activations_data(results)['paths']
    assert [path['label'] for path in paths] == [RUN.format(seed) for seed in range(3)]
    assert paths[0]['epochs'][1] == {'epoch': 2, 'alpha': 1.1, 'beta': 0.01}
    assert [values['epoch'] for values in paths[2]['epochs'][-2:]] == [20, 22]
    assert paths[2]['epochs'][-1] == {'epoch': 22, 'alpha': functional.ALPHA_MAX, 'beta': -functional.BETA_MAX}


def test_infinite_limits_become_null():
    data = explorers.activations_data(Path('nowhere'))
    assert data['activations']['prelu0']['alpha']['greatest'] is None and data['paths'] == []
    assert data['activations']['psilu']['alpha']['greatest'] == functional.ALPHA_MAX < math.inf


def test_pages_of_results_hold_the_numbers_of_the_json(results, tmp_path):
    figures.write_results(results, tmp_path / 'pages')
    pages = {file.stem: file.read_text() for file in (tmp_path / 'pages' / 'sweep_digits').iterdir()}
    assert set(pages) == {
        'accuracy-lr-0.1-task-a-b', 'differences-to-relu-and-silu-lr-0.1-task-a-b', 'robustness-over-the-parameter',
        'robustness-over-the-shape', 'learned-parameters-lr-0.1-task-a-b', 'runs'}
    lines = pages['accuracy-lr-0.1-task-a-b'].splitlines()
    table = [line.strip('| ').split(' | ') for line in lines if line.startswith('|')]
    assert table[1][:3] == ['---', '---:', '---:']
    assert [row[:4] for row in table[2:]] == [  # sorted by robust accuracy
        ['pssilu, learned', '3', '80.00', '44.50'], ['psilu, fixed alpha=2', '3', '91.50', '43.00'],
        ['relu', '3', '90.00', '40.00'], ['gelu', '3', '70.00', '30.00']]
    assert '| pssilu, learned | relu | 3 |' in pages['differences-to-relu-and-silu-lr-0.1-task-a-b']
    assert pages['runs'].startswith('12 runs') and '2026-01-01' in pages['runs']
    drawn = [svg for page in pages.values() for svg in re.findall('<svg.*?</svg>', page, re.DOTALL)]
    assert len(drawn) == 5
    assert not any(re.search(r'\n[ \t]*\n', svg) for svg in drawn)  # a blank line ends an HTML block in Markdown


def test_the_table_of_the_readme_is_that_of_the_runs():
    content = json.loads((DOCS / 'results' / 'sweep_digits_full.json').read_text())
    assert figures.readme_table(explorers.read_groups(content)) in (DOCS.parent / 'README.md').read_text()
    assert len(figures.draw_digits(explorers.read_groups(content)).axes) == 2
    (relu,) = (group for group in content['groups'] if group['activation'] == 'relu' and not group['options'])
    pgd = np.array(relu['best']['pgd'])
    assert f'| {pgd.mean():.1f} ± {pgd.std(ddof=1):.1f} |' in (DOCS.parent / 'README.md').read_text()
