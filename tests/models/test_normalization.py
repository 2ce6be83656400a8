"""Mean and std of published networks, against the classes of RobustBench, and what loading makes of them."""
import argparse
import ast

import pytest
import timm
import torch
from torch import nn

from tests.models.conftest import CIFAR10
from tests.models.test_published import authors
from timm_paf.attacks import Normalized
from timm_paf.models import checkpoint_normalization, load_weights, published_normalization

PIXELS = (0., 0., 0.), (1., 1., 1.)


@pytest.mark.parametrize('path, num_classes, expected', [
    ('Rice2020Overfitting', 10, (0.4914, 0.2471)),
    ('models/cifar100/Linf/Rice2020Overfitting.pt', 100, (0.5070751592371323, 0.2673342858792401)),
    ('Engstrom2019Robustness.pt', 10, (0.4914, 0.2023)), ('Wu2020Adversarial.pt', 10, (0., 1.)),
    ('wu2020adversarial_trades.pt', 100, (0.5070751592371323, 0.2673342858792401)),
    ('cifar10_Hendrycks2019Using_linf.pt', 10, (0.5, 0.5)), ('Wong2020Fast.pt', 1000, (0.485, 0.229)),
    ('Cui2023Decoupled_WRN-28-10.pt', 10, (0.4914, 0.2471)), ('Cui2023Decoupled_WRN-34-10.pt', 10, (0., 1.)),
    ('Rice2020Overfitting.pt', 7, None), ('model_best.pth.tar', 10, None), ('Rice2020Overfitting/last.pt', 10, None),
])
def test_known_names(path, num_classes, expected):
    found = published_normalization(path, num_classes=num_classes)
    assert (found and (found[0][0], found[1][0])) == expected


def numbers(node):
    return [tuple(value.value for value in each.elts) for each in ast.walk(node)
            if isinstance(each, ast.List) and all(isinstance(value, ast.Constant) for value in each.elts) and each.elts]


@pytest.mark.parametrize('dataset, num_classes', [('cifar10', 10), ('cifar100', 100)])
def test_every_network_of_robustbench_that_normalises(robustbench, dataset, num_classes):
    """Mean and std are read from the source of each class: the two buffers, or the constants of `dm_wide_resnet.py`."""
    constants = robustbench('model_zoo/architectures/dm_wide_resnet.py')
    tree = ast.parse((robustbench.root / f'model_zoo/{dataset}.py').read_text())
    classes = {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    checked = 0
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[1], ast.Dict)):
            continue
        name, model = node.elts[0].value, ast.unparse(node.elts[1])
        used = next((text for cls, text in classes.items() if f"'model': {cls}," in model), '')
        found = published_normalization(f'{name}.pt', num_classes=num_classes)
        if 'register_buffer' in used:
            values = [value for value in numbers(ast.parse(used)) if len(value) == 3]
            expected = tuple(values) if values else ((0.5,) * 3, (0.5,) * 3)
            if name.startswith('Modas'):  # its file holds them
                continue
        elif '2.0 * x - 1.0' in used:
            expected = ((0.5,) * 3, (0.5,) * 3)
        elif 'STD' in model:
            expected = tuple(getattr(constants, f'{dataset.upper()}_{kind}') for kind in ('MEAN', 'STD'))
        else:
            assert found is None or found == ((0.,) * 3, (1.,) * 3) or name.startswith(
                ('Debenedetti', 'Kang', 'Pang2020')), name
            continue
        assert found == expected, name
        checked += 1
    assert checked > 15


@pytest.mark.parametrize('file, given, expected, warns', [
    ('Rice2020Overfitting.pt', None, tuple(CIFAR10.values()), True),
    ('Engstrom2019Robustness.pt', None, (CIFAR10['input_mean'], (0.2023, 0.1994, 0.201)), True),
    ('Rice2020Overfitting.pt', ((0.5,) * 3, (0.25,) * 3), ((0.5,) * 3, (0.25,) * 3), False),
    ('Rice2020Overfitting.pt', ((0.,) * 3, (1.,) * 3), ((0.,) * 3, (1.,) * 3), False),
    ('Carmon2019Unlabeled.pt', None, None, False), ('best.pt', None, None, True),
], ids=['known', 'other std', 'the user decides', 'the user says none', 'known to have none', 'unknown'])
def test_files_that_do_not_say(tmp_path, caplog, file, given, expected, warns):
    source, weights = authors('wrn10_2_relu')
    torch.save({'state_dict': weights}, tmp_path / file)
    settings = {} if given is None else dict(input_mean=given[0], input_std=given[1])
    model = timm.create_model('wrn10_2_relu', **settings).eval()
    stated = checkpoint_normalization(tmp_path / file, model)
    assert stated == (expected if given is None else None) or (file.startswith('Carmon') and stated[1] == (1.,) * 3)
    load_weights(model, tmp_path / file)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in expected or (3 * (0.,), 3 * (1.,)))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(x), source((x - mean) / std))
    assert len(caplog.records) == warns
    overlay = dict(file=str(tmp_path / file))  # the same through timm
    other = timm.create_model('wrn10_2_relu', pretrained=True, pretrained_cfg_overlay=overlay, **settings).eval()
    torch.testing.assert_close(other(x), model(x))


def test_layouts_that_do_not_need_the_remark(tmp_path, caplog):
    for name, weights in (('a.pt', authors()[1]), ('b.pt', authors()[0].state_dict())):
        torch.save(weights, tmp_path / name)
        load_weights(timm.create_model('wrn10_2_pssilu'), tmp_path / name)
    assert not caplog.records


@pytest.mark.parametrize('name', ['Ding2020MMA', 'Pang2020Boosting'])
def test_published_networks_that_compute_something_else(tmp_path, name):
    torch.save(authors('wrn10_2_relu')[1], tmp_path / f'{name}.pt')
    with pytest.raises(ValueError, match=f'{name} '):
        load_weights(timm.create_model('wrn10_2_relu'), tmp_path / f'{name}.pt')


def stock():
    return timm.create_model('resnet18', num_classes=3)


def ours():
    return timm.create_model('wrn10_2_relu')


@pytest.mark.parametrize('build, wrap, content, known', [
    (stock, None, {}, None), (stock, None, {'run': {}}, PIXELS), (stock, Normalized.of_timm, {}, None),
    (stock, None, {'mean': [.1, .2, .3], 'std': [1., 1., 1.]}, ([.1, .2, .3], [1., 1., 1.])),
    (ours, None, {}, PIXELS), (lambda: nn.Linear(2, 2), None, {}, None),
], ids=['timm', 'run of this package', 'timm in Normalized', 'stated', 'this package', 'own'])
def test_what_a_file_says(build, wrap, content, known, tmp_path, caplog):
    """Where it says nothing, loading logs a warning; a network in `Normalized` needs none."""
    torch.save({**content, 'state_dict': build().state_dict()}, tmp_path / 'w.pth')
    model = build()
    assert checkpoint_normalization(tmp_path / 'w.pth', model) == known
    target = wrap(model) if wrap else model
    if 'mean' in content:
        with pytest.raises(ValueError, match='Normalized'):
            load_weights(target, tmp_path / 'w.pth')
    else:
        load_weights(target, tmp_path / 'w.pth')
        assert ('does not say' in caplog.text) == (known is None and wrap is None)


@pytest.mark.parametrize('content', [{'run': {}}, {'args': argparse.Namespace(mean=[0., 0., 0.], std=[1., 1., 1.])}],
                         ids=['run of this package', "timm's train.py"])
def test_a_file_that_says_pixels_is_not_loaded_into_a_network_that_normalises(content, tmp_path):
    torch.save({**content, 'state_dict': stock().state_dict()}, tmp_path / 'w.pth')
    load_weights(stock(), tmp_path / 'w.pth')
    load_weights(Normalized(stock(), [0.], [1.]), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='the file normalises with'):
        load_weights(Normalized.of_timm(stock()), tmp_path / 'w.pth')
