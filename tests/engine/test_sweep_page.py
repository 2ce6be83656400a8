"""Table and report of a sweep, from made-up runs."""
import csv
import json
import re

import pytest
import torch
import yaml

from timm_paf import shape
from timm_paf.activations import ACTIVATIONS
from timm_paf.engine import sweep_page, sweep_rows, write_table
from timm_paf.engine.sweep_page import sweep_sections
from timm_paf.engine.sweep_plots import EQUAL, fixed_groups, plot_parameters
from timm_paf.engine.sweep_table import groups_of, read_groups


def accuracy(correct, total=1000):
    return {'correct': correct, 'total': total, 'interval': [correct / total - 0.03, correct / total + 0.03]}


def made_up(output, activation, seed, robust, *, learned=False, parameters=None, path=(), last=None, **options):
    """The folder of a cell: `robust` images of 1000 are robust at the best of two epochs, `last` at the last one."""
    given = ','.join(f'{name}={value}' for name, value in (parameters or {}).items())
    folder = output / f'{activation},{given},{",".join(options.values())},{learned},{seed}'
    (folder / 'last').mkdir(parents=True)
    (folder / 'cell.json').write_text(json.dumps({
        'activation': activation, 'parameters': parameters or {}, 'learned': learned, 'options': options, 'seed': seed,
        'threads': 1, 'machine': 'made up', 'seconds': 60.}))
    (folder / 'args.yaml').write_text(yaml.safe_dump({
        'device': 'cpu', 'dataset': 'digits', 'model': f'net_{activation}', 'norm': 'linf', 'eps': '0.2',
        'lr': 0.1, 'epochs': 2}))
    columns = sorted({f'act_{name}' for point in path for name in point})
    with open(folder / 'summary.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, ['epoch', 'eval_clean', 'eval_robust', *columns])
        writer.writeheader()
        writer.writerows({'epoch': epoch, 'eval_clean': 90., 'eval_robust': 50. - epoch, **{
            f'act_{name}': value for name, value in point.items()}} for epoch, point in enumerate(path or ({}, {})))
    epochs = max(len(path), 2)
    (folder / 'selection.json').write_text(json.dumps({'metric': 'robust', 'selected': 'raw', 'raw': {
        'best': {'epoch': 0}, 'last': {'epoch': epochs - 1}}}))
    for name, count in (('', robust), ('last', robust - 20 if last is None else last)):
        (folder / name / 'report.json').write_text(json.dumps({
            'clean': accuracy(900 - 10 * seed), 'pgd': accuracy(count + 15),
            'autoattack': {**accuracy(count), 'components': ['apgd-ce']},
            'versions': {'torch': '2'}, 'created': '2026-01-01T00:00:00+00:00'}))
    return folder


def test_rows_have_counts_parameters_and_the_shape_they_give(tmp_path):
    made_up(tmp_path, 'psilu', 0, 400, learned=True, path=({'alpha': 2.}, {'alpha': 3.}), last=380, task='pgd-at')
    made_up(tmp_path, 'relu', 1, 300, task='plain')
    best, last, relu, _ = sweep_rows(tmp_path)
    assert (best['autoattack_correct'], best['autoattack_images'], best['autoattack']) == (400, 1000, 40.)
    assert (best['autoattack_low'], best['autoattack_high']) == pytest.approx((37, 43))
    assert best['autoattack_parts'] == 'apgd-ce'
    assert (last['epoch'], last['autoattack'], last['task'], last['val_robust']) == (1, 38., 'pgd-at', 49.)
    for row, alpha in ((best, 2.), (last, 3.)):
        found = shape.describe('psilu', alpha=alpha)
        assert (row['alpha'], row['finite_curvature'], row['negative_mean']) == (
            alpha, found.finite_curvature, found.negative_mean)
    assert (relu['alpha'], relu['finite_curvature'], relu['smoothness'], relu['task']) == (None, 0, 'C0', 'plain')


@pytest.mark.parametrize('columns, expected', [
    ({'alpha_mean': 2., 'alpha_min': 1., 'alpha_max': 3.}, 2.),
    ({'layer1.act.alpha': 1., 'layer2.act.alpha': 2., 'layer2.act.alpha_grad': 9.}, 1.5)], ids=['many', 'stages'])
def test_several_activations_are_a_mean(tmp_path, columns, expected):
    made_up(tmp_path, 'psilu', 0, 400, learned=True, path=(columns, columns))
    assert sweep_rows(tmp_path)[0]['alpha'] == expected


def test_parameters_outside_of_their_range_or_not_finite(tmp_path):
    made_up(tmp_path, 'pssilu', 0, 400, learned=True, path=({'alpha': 2., 'beta': -1.5}, {'alpha': 2., 'beta': 'nan'}))
    best, last = sweep_rows(tmp_path)
    assert best['finite_curvature'] > 0 and 'finite_curvature' not in last
    assert sweep_page([best, last], tmp_path, title='x')


def test_a_cell_that_is_not_done_has_no_row(tmp_path):
    (made_up(tmp_path, 'relu', 0, 300) / 'report.json').unlink()
    assert sweep_rows(tmp_path) == []


def test_the_table_as_csv_and_parquet(tmp_path):
    made_up(tmp_path, 'relu', 0, 300)
    made_up(tmp_path, 'pssilu', 0, 310, learned=True, path=({'alpha': 2., 'beta': 0.1},) * 2, act_sharing='layer')
    rows = sweep_rows(tmp_path)
    write_table(rows, tmp_path)
    with open(tmp_path / 'results.csv', newline='') as file:
        read = list(csv.DictReader(file))
    assert [row['autoattack_correct'] for row in read] == [str(row['autoattack_correct']) for row in rows]
    parquet = pytest.importorskip('pyarrow.parquet')
    table = parquet.read_table(tmp_path / 'results.parquet').to_pylist()
    assert [row['alpha'] for row in table] == [row.get('alpha') for row in rows]


def test_the_summary_has_the_values_of_each_seed(tmp_path):
    for seed in (3, 4):
        made_up(tmp_path, 'psilu', seed, 400 + seed, learned=True, path=({'alpha': 2.}, {'alpha': 3. + seed}), task='x')
        made_up(tmp_path, 'relu', seed, 300)
    write_table(sweep_rows(tmp_path), tmp_path)
    found = json.loads((tmp_path / 'results.json').read_text())
    assert (found['runs'], found['seconds'], found['eps']) == (4, 240, '0.2')
    psilu, relu = found['groups']
    assert (psilu['seeds'], psilu['options'], psilu['lr']) == ([3, 4], {'task': 'x'}, 0.1)
    assert psilu['best']['autoattack'] == [40.3, 40.4] and psilu['last']['autoattack'] == [38.3, 38.4]
    assert psilu['paths'] == [[[1, 2., None], [2, 6., None]], [[1, 2., None], [2, 7., None]]]
    assert psilu['best']['finite_curvature'] == [shape.describe('psilu', alpha=2.).finite_curvature] * 2
    assert (relu['paths'], relu['options']) == ([], {})
    for read, group in zip(read_groups(found), groups_of(sweep_rows(tmp_path), tmp_path), strict=True):
        assert read.label() == group.label() and read.fact('lr') == group.fact('lr')
        assert {seed: list(map(tuple, path)) for seed, path in read.paths.items()} == group.paths
        for column in ('clean', 'pgd', 'autoattack', 'pgd_images', 'alpha', 'negative_mean'):
            for checkpoint in ('best', 'last'):
                assert read.values(column, checkpoint) == group.values(column, checkpoint)


def test_the_attack_with_the_most_images_compares(tmp_path):
    for name, robust in (('relu', 300), ('silu', 320)):
        report = made_up(tmp_path, name, 0, robust) / 'report.json'
        report.write_text(json.dumps(json.loads(report.read_text()) | {'pgd': accuracy(robust + 100, 9000)}))
    text = sweep_page([row for row in sweep_rows(tmp_path) if row['checkpoint'] == 'best'], tmp_path, title='x')
    assert re.search(r'<th[^>]*>seeds for ±1</th><th[^>]*>PGD</th>', text) and 'PGD, 95 % interval' in text


def test_a_column_that_some_runs_lack_stays_empty(tmp_path):
    for name, seed, robust in (
            ('relu', 0, 300), ('relu', 1, 300), ('silu', 0, 320), ('silu', 1, 320), ('elu', 0, 310)):
        report = made_up(tmp_path, name, seed, robust) / 'report.json'
        if name == 'elu' or (name, seed) == ('silu', 1):
            content = json.loads(report.read_text())
            content.pop('autoattack')
            report.write_text(json.dumps(content))
    rows = sweep_rows(tmp_path)
    text = sweep_page(rows, tmp_path, title='x')
    assert 'nan' not in text
    assert 'PGD, 95 % interval' in text and 'AutoAttack, 95 % interval' not in text  # compared under what all have
    cells = [re.findall(r'<td[^>]*>([^<]*)</td>', line) for line in re.findall('<tr>.*?</tr>', text, re.S)]
    assert {row[0]: row[1:5] for row in cells if len(row) == 10 and row[1].isdigit()} == {
        'silu': ['2', '89.50', '33.50', '32.00'], 'elu': ['1', '90.00', '32.50', ''],
        'relu': ['2', '89.50', '31.50', '30.00']}
    write_table(rows, tmp_path)
    silu = next(group for group in read_groups(json.loads((tmp_path / 'results.json').read_text()))
                if group.activation == 'silu')
    assert silu.values('autoattack') == {0: 32.} and silu.values('pgd') == {0: 33.5, 1: 33.5}


def test_a_first_seed_without_autoattack(tmp_path):
    """As in a folder with a cell of an older grid."""
    for seed in (0, 1):
        report = made_up(tmp_path, 'relu', seed, 300) / 'report.json'
        if seed == 0:
            content = json.loads(report.read_text())
            content.pop('autoattack')
            report.write_text(json.dumps(content))
    assert 'AutoAttack, 95 % interval' in sweep_page(sweep_rows(tmp_path), tmp_path, title='x')


def study(output):
    """Three seeds of references, fixed and learned parameters, with one option."""
    for seed in range(3):
        for decay, less in (('0', 0), ('0.0005', 7)):
            for name, robust in (('relu', 300), ('leaky_relu', 296), ('elu', 312), ('gelu', 322), ('silu', 320),
                                 ('mish', 318), ('softplus', 309)):
                made_up(output, name, seed, robust + 5 * seed * (seed - 1) - less, norm_weight_decay=decay)
            for name in ('psilu', 'psoftplus', 'reblu'):
                for alpha in (0.5, 1., 2., 4.):
                    made_up(output, name, seed, round(300 + 12 * alpha - alpha ** 3 / 2 + 3 * seed - less),
                            parameters={'alpha': alpha}, path=({'alpha': alpha},) * 2, norm_weight_decay=decay)
            for start in (1., 3.):
                made_up(output, 'pssilu', seed, 330 + 4 * seed - less, learned=True, parameters={'alpha': start},
                        path=[{'alpha': start + (2.5 - start) * e / 8 + seed / 10, 'beta': 0.02 * e} for e in range(9)],
                        norm_weight_decay=decay)


def test_the_report_compares_and_needs_no_other_file(tmp_path):
    study(tmp_path)
    rows = sweep_rows(tmp_path)
    groups = groups_of(rows)
    assert len(groups) == 42 and all(len(group.best) == len(group.last) == 3 for group in groups)
    (tmp_path / 'elu').mkdir()
    (tmp_path / 'elu' / 'error.txt').write_text('no <memory>\n')
    text = sweep_page(rows, tmp_path, title='a & b', states={'elu': 'failed', 'relu': 'done'})
    assert not re.search(r'(src|href)="(?!data:|#)', text) and '<script' not in text
    assert '<h1>a &amp; b</h1>' in text and 'no &lt;memory&gt;' in text
    assert text.count('<svg') == 9  # two for three parameters, one over shape, three for each option
    # differences of 20 images of 1000 with every seed
    assert len(re.findall(r'<td[^>]*>silu</td><td[^>]*>relu</td><td[^>]*>3</td><td[^>]*>2</td>'
                          r'<td[^>]*>\+2.00</td><td[^>]*>\+2.00 to \+2.00</td>', text)) == 2


@pytest.mark.parametrize('name', EQUAL)
def test_activations_without_parameters_that_are_equal(name):
    other, values = EQUAL[name]
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    torch.testing.assert_close(
        ACTIVATIONS[name](**values).double()(x), getattr(torch.nn.functional, other)(x), rtol=0, atol=1e-14)


def test_the_figure_over_a_parameter_has_the_activation_that_is_equal(tmp_path):
    for robust, (name, parameters) in enumerate((
            ('silu', {}), ('psilu', {'alpha': 2.}), ('psilu', {'alpha': 4.}),
            ('pssilu', {'alpha': 2., 'beta': 0.1}), ('pssilu', {'alpha': 2., 'beta': 0.2}))):
        made_up(tmp_path, name, 0, 300 + robust, parameters=parameters, path=(parameters,) * 2)
    groups = groups_of(sweep_rows(tmp_path))
    first, second = plot_parameters(fixed_groups(groups), groups, 'pgd').axes
    assert list(first.lines[-1].get_xdata()) == [1., 2., 4.]
    assert list(second.lines[-1].get_xdata()) == [0.1, 0.2]  # SiLU has another alpha
    shown = {section.title: section for section in sweep_sections(groups)}['Robustness over the shape'].rows
    assert {row[0]: row[2] for row in shown} == {'all': 5, 'psilu, fixed': 3}  # two points have no rank correlation


def test_beta_counts_without_its_sign(tmp_path):
    """The formula takes its absolute value, so the mean of 0.1 and -0.1 is not 0."""
    for seed, beta in enumerate((0.1, -0.1)):
        made_up(tmp_path, 'pssilu', seed, 300, learned=True, path=({'alpha': -2., 'beta': beta},) * 2)
        made_up(tmp_path, 'reblu', seed, 300, learned=True, path=({'alpha': -0.5},) * 2)
    pssilu, reblu = groups_of(sweep_rows(tmp_path), tmp_path)
    assert (pssilu.mean('alpha'), pssilu.mean('beta'), reblu.mean('alpha')) == (2., 0.1, -0.5)
    assert pssilu.paths[1] == [(1, 2., 0.1), (2, 2., 0.1)]
    assert pssilu.mean('negative_mean') == pytest.approx(shape.describe('pssilu', alpha=2., beta=0.1).negative_mean)


@pytest.mark.parametrize('two', [True, False])
def test_the_last_checkpoint_is_shown_where_it_is_another(tmp_path, two):
    folder = made_up(tmp_path, 'relu', 0, 300)
    if not two:
        (folder / 'selection.json').write_text(json.dumps({'metric': 'robust', 'selected': 'raw', 'raw': {
            'best': {'epoch': 1}, 'last': {'epoch': 1}}}))
    text = sweep_page(sweep_rows(tmp_path), tmp_path, title='x')
    assert ('last checkpoint</text>' in text, '>gap</th>' in text) == (two, two)
    assert ('best checkpoint of each run is its last' in text) != two


def test_differences_at_the_last_epoch(tmp_path):
    for name, best, last in (('silu', 300, 200), ('psilu', 310, 260)):
        made_up(tmp_path, name, 0, best, last=last)
    section = {section.title: section for section in sweep_sections(groups_of(sweep_rows(tmp_path)))}[
        'Differences to ReLU and SiLU']
    row = dict(zip(section.header, section.rows[0], strict=True))
    assert (row['activation'], row['minus'], row['AutoAttack'], row['last']) == ('psilu', 'silu', '+1.00', '+6.00')


def test_runs_without_options_come_first(tmp_path):
    for option, robust in (('', 300), ('0', 400)):
        made_up(tmp_path, 'relu', 0, robust, **({'norm_weight_decay': option} if option else {}))
    titles = [section.title for section in sweep_sections(groups_of(sweep_rows(tmp_path)))]
    assert titles[:2] == ['Accuracy', 'Accuracy, norm weight decay 0']


def test_one_run_gives_a_report(tmp_path):
    made_up(tmp_path, 'relu', 0, 300)
    assert sweep_page(sweep_rows(tmp_path), tmp_path, title='x').count('<svg') == 2
