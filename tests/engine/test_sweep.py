"""Grid files and their cells."""
import dataclasses
from pathlib import Path

import pytest
import timm
import torch

from timm_paf.activations import paf_parameters
from timm_paf.engine import TrainConfig, read_sweep
from timm_paf.engine.model import untrained_model
from timm_paf.engine.optim import learning_rate

CONFIGS = Path(__file__).resolve().parents[2] / 'recipes' / 'configs'


def sweep(tmp_path, grid, head='base: digits\narch: wrn10_2\n'):
    path = tmp_path / 'grid.yaml'
    path.write_text(f'{head}grid:\n{grid}')
    return read_sweep(str(path))


@pytest.mark.parametrize('grid, names', [
    ('- activation: relu', ['relu,seed=0']),
    ('- {activation: [relu, gelu], seed: [1, 0]}', ['relu,seed=0', 'gelu,seed=0', 'relu,seed=1', 'gelu,seed=1']),
    ('- {activation: psilu, fixed: {alpha: [0.5, 2.0]}}', ['psilu,alpha=0.5,seed=0', 'psilu,alpha=2,seed=0']),
    ('- {activation: psilu, learned: {alpha: [1, 3]}}', ['psilu,start-alpha=1,seed=0', 'psilu,start-alpha=3,seed=0']),
    ('- {activation: pssilu, fixed: {alpha: 1, beta: [0.1, 0.2]}, learned: {alpha: 2}}', [
        'pssilu,alpha=1,beta=0.1,seed=0', 'pssilu,alpha=1,beta=0.2,seed=0', 'pssilu,start-alpha=2,seed=0']),
    ('- {activation: relu, task: [plain, pgd-at], eps: 8/255}', [
        'relu,task=plain,eps=8_255,seed=0', 'relu,task=pgd-at,eps=8_255,seed=0']),
    ('- {activation: relu, beta-grad-clip: [null, 0.01]}', [
        'relu,beta_grad_clip=none,seed=0', 'relu,beta_grad_clip=0.01,seed=0']),
    ('- activation: relu\n- {activation: relu, seed: 3}', ['relu,seed=0', 'relu,seed=3']),
    ('- {activation: [relu, silu], settings: {lr: 0.2}}', ['relu,seed=0', 'silu,seed=0']),
], ids=['one', 'seeds first', 'fixed', 'learned', 'both', 'options', 'unset', 'blocks', 'settings'])
def test_a_grid_becomes_cells(tmp_path, grid, names):
    assert [cell.name for cell in sweep(tmp_path, grid).cells] == names


def test_a_cell_has_the_settings_of_base_file_and_axes(tmp_path):
    head = 'base: digits\narch: wrn10_2\nsettings: {epochs: 3, weight-decay: 0}\n'
    cell, = sweep(tmp_path, '- {activation: psilu, fixed: {alpha: 2}, seed: 5, beta_penalty: 1}', head).cells
    config = cell.config(tmp_path, device='cpu')
    base = TrainConfig.from_yaml(CONFIGS / 'digits.yaml')
    assert (config.model, config.act_fixed, config.seed) == ('wrn10_2_psilu', ('alpha=2.0',), 5)
    assert (config.epochs, config.weight_decay, config.beta_penalty) == (3, 0, 1)  # those of the file
    assert (config.eps, config.attack_steps, config.momentum) == (base.eps, base.attack_steps, base.momentum)
    assert (config.output, config.experiment, config.resume) == (str(tmp_path), cell.name, 'auto')


def test_settings_of_a_block_hold_for_its_cells_alone(tmp_path):
    grid = '- {activation: relu, settings: {lr: 0.2}, seed: [0, 1]}\n- activation: silu'
    head = 'base: digits\narch: wrn10_2\nsettings: {lr: 0.3}\n'
    assert [(cell.activation, cell.config('').lr, cell.options) for cell in sweep(tmp_path, grid, head).cells] == [
        ('relu', 0.2, {}), ('silu', 0.3, {}), ('relu', 0.2, {})]


@pytest.mark.parametrize('before, now, names', [
    ('clip_grad: 1', 'clip_grad: null', ['clip_grad']), ('act_fixed: [alpha=2]', 'act_fixed: []', ['act_fixed']),
    ('lr: 0.2', 'lr: null', ['lr']), ('lr: null', 'lr: null', []), ('workers: 3', 'workers: 0', []),
    ('class_names: [a, b]', 'class_names: []', []), ('class_names: [a, b]', 'class_names: [b, a]', ['class_names']),
    ('val_size: 1024', 'val_size: null', []), ('val_size: 5000', 'val_size: null', ['val_size']),
    ('amp: true', 'amp: null', []), ('amp: true', 'amp: false', ['amp']),
], ids=str)
def test_settings_that_differ_from_those_of_a_run(tmp_path, before, now, names):
    old, new = (sweep(tmp_path, '- activation: psilu', f'arch: wrn10_2\nsettings: {{{settings}}}\n').cells[0]
                for settings in (before, now))
    trained = old.config('', device='cpu')
    trained = dataclasses.replace(trained, lr=learning_rate(trained), channels_last=False).to_dict()  # as in args.yaml
    assert new.differences(trained) == names
    del trained['momentum']  # a run of a version that did not have this setting
    assert new.differences(trained) == names


class Images:
    num_classes, image_shape = 10, (1, 8, 8)


@pytest.mark.parametrize('arch', ['wrn10_2', 'preact_resnet18', 'resnet18', 'vgg11_bn'])
@pytest.mark.parametrize('activation', ['leaky_relu', 'gelu', 'mish', 'softplus'])
def test_activations_without_a_model_name_get_into_the_network(tmp_path, arch, activation):
    """No ReLU is left, and the activation is timm's."""
    cell, = sweep(tmp_path, f'- activation: {activation}', f'base: digits\narch: {arch}\n').cells
    model, _ = untrained_model(cell.config(tmp_path), None, Images)
    kinds = [type(module) for module in model.modules()]
    assert timm.layers.get_act_layer(activation) in kinds and torch.nn.ReLU not in kinds


@pytest.mark.parametrize('arch, activation', [('wrn10_2', 'pssilu'), ('mobilenetv3_small_050', 'psilu')])
def test_parameters_are_fixed_or_start_at_the_given_values(tmp_path, arch, activation):
    head = f'base: digits\narch: {arch}\nsettings: {{normalize: false}}\n'
    for key, learns in (('fixed', False), ('learned', True))[:2 if arch == 'wrn10_2' else 1]:
        cell, = sweep(tmp_path, f'- {{activation: {activation}, {key}: {{alpha: 2.5}}}}', head).cells
        model, _ = untrained_model(cell.config(tmp_path), None, Images)
        held = [*model.named_buffers(), *model.named_parameters()]
        alphas = {name: value.detach() for name, value in held if name.endswith('alpha')}
        assert alphas and all(float(value) == 2.5 for value in alphas.values())
        assert any(name.endswith('alpha') for name in paf_parameters(model)) == learns == cell.learned


@pytest.mark.parametrize('head, grid, words', [
    ('arch: wrn10_2\n', '- {actvation: relu}', ['block 1', 'activation']),
    ('arch: wrn10_2\n', '- {activation: relu, epoch: 2}', ['block 1', "'epoch'", 'epochs']),
    ('arch: wrn10_2\n', '- {activation: relu, model: x}', ["'model'"]),
    ('arch: wrn10_2\n', '- activation: relu\n- {activation: relu, task: walk}', ['block 2', '--task', 'walk']),
    ('arch: wrn10_2\n', '- {activation: rellu}', ['rellu']),
    ('arch: wrn10_2\n', '- {activation: relu, fixed: {alpha: 1}}', ['relu', 'psilu']),
    ('arch: wrn10_2\n', '- {activation: psilu, fixed: {gamma: 1}}', ['gamma']),
    ('arch: wrn10_2\n', '- {activation: pssilu, fixed: {beta: 1.5}}', ['beta', '1.5']),
    ('arch: wrn10_2\n', '- {activation: psilu, fixed: 2}', ['fixed', '2']),
    ('arch: wrn10_2\n', '- activation: relu\n- activation: relu', ['relu,seed=0', 'twice']),
    ('arch: nothing\n', '- activation: relu', ['nothing']),
    ('arch: wrn10_2\nsetings: {}\n', '- activation: relu', ["'setings'", 'settings']),
    ('arch: wrn10_2\nsettings: {lrr: 1}\n', '- activation: relu', ["'lrr'"]),
    ('arch: wrn10_2\n', '- {activation: relu, settings: {lrr: 1}}', ['block 1', "'lrr'"]),
    ('arch: wrn10_2\n', '- {activation: relu, settings: {model: x}}', ['block 1', "'model'"]),
    ('arch: wrn10_2\nbase: nowhere\n', '- activation: relu', ['nowhere']),
    ('arch: wrn10_2\n', '- {activation: relu, autoattack: [none, standard]}', ['block 1', 'autoattack', 'settings']),
    ('', '- activation: relu', ['arch']), ('arch: wrn10_2\n', '  activation: relu', ['grid']),
])
def test_mistakes_are_named_in_a_line(tmp_path, head, grid, words):
    with pytest.raises(ValueError) as error:
        sweep(tmp_path, grid, head)
    assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('sweep_*.yaml')), ids=lambda path: path.stem)
def test_shipped_grids(path):
    """Each has the reference ReLU with every seed and says its command; several seeds, except for rates."""
    found = read_sweep(path.stem)
    seeds = {cell.seed for cell in found.cells}
    assert seeds == {cell.seed for cell in found.cells if cell.activation == 'relu'}
    assert len(seeds) > 1 or path.stem.endswith('_lr')
    assert f'-c {path.stem}' in path.read_text().split('base:')[0]
