"""The comparison of attacks: what is counted, and against what time is measured."""
import json

import _attack_peers
import pytest
import torch
from torch import nn

from recipes.benchmarks import attack as recipe


@pytest.fixture
def subject():
    """Two classes; the logit of class 1 is the pixel minus a half: an image stands within its distance to that."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.], [1.]]))
        model[1].bias.copy_(torch.tensor([0., -0.5]))
    x = torch.tensor([0.55, 0.65, 0.9, 0.2]).view(4, 1, 1, 1)
    return recipe.kept(recipe.Subject('one pixel', model.eval(), x, torch.tensor([1, 1, 1, 1]), ['0.1', '1/5']))


@pytest.mark.parametrize('name', ['ours', 'early_stop'])
def test_standing_images_are_counted(subject, name):
    assert len(subject.x) == 3  # the last is misclassified as it is
    assert recipe.standing(subject, getattr(_attack_peers, name), 5) == [2, 1]


def test_an_attack_that_cheats_is_an_error(subject):
    with pytest.raises(RuntimeError, match=r'left the ball of radius 0\.1'):
        recipe.standing(subject, lambda model, x, y, eps, steps: x - 2 * eps, 5)


def test_the_floor_is_as_many_passes_and_all_are_timed(subject):
    passes = []
    subject.model.register_full_backward_pre_hook(lambda *_: passes.append(1))
    _attack_peers.floor(subject.model, subject.x, subject.y, 0.1, 7)
    assert len(passes) == 7
    times = recipe.timed(subject, {'ours': _attack_peers.ours}, 3, images=2, rounds=2)
    assert times.over_floor('floor') == [1, 1] and all(ratio > 0 for ratio in times.over_floor('ours'))
    assert len(times.machine.copies) == 2


def test_images_rotate(subject):
    seen = []
    subject.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten().tolist()))
    recipe.timed(subject, {}, 1, images=2, rounds=2)
    first, second = subject.x.flatten().tolist()[:2], subject.x.flatten()[[2, 0]].tolist()
    assert seen[-4:] == [first, first, second, second]


@pytest.mark.parametrize('change, message', [
    (lambda x_adv, x: x, 'PGD raises the loss from'), (lambda x_adv, x: 2 * x_adv - x, 'left the ball'),
], ids=['weak', 'outside'])
def test_wrong_attacks_are_not_timed(subject, monkeypatch, change, message, capsys):
    class Wrong(recipe.PGD):
        def __call__(self, model, x, y, **kwargs):
            return change(super().__call__(model, x, y, **kwargs), x)

    monkeypatch.setattr('_attack_peers.PGD', Wrong)
    monkeypatch.setattr(recipe, 'PGD', Wrong)
    monkeypatch.setattr(recipe, 'cifar', lambda device: subject)
    monkeypatch.setattr(recipe, 'timed', lambda *_, **__: pytest.fail('timed'))
    assert recipe.main(['--subjects', 'cifar', '--eps', '0.1']) == 2
    assert message in capsys.readouterr().err


def test_a_table_names_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / 'folder' / 'attack.md'
    arguments = ['--subjects', 'model', '--model', 'wrn10_2_relu', '--steps', '1', '--rounds', '2', '--output']
    assert recipe.main([*arguments, str(output), '--json', 'attack.json']) == 0
    command = f'python recipes/benchmarks/attack.py {" ".join(arguments)} folder/attack.md --json attack.json'
    assert f'`{command}`' in output.read_text()
    written = json.loads((tmp_path / 'attack.json').read_text())
    names = [measure['name'] for measure in written['measures']]
    assert written['command'] == command and 'timm_paf: over the floor' in names
