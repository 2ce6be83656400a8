"""What AutoAttack would go on from is told beforehand, as it would tell it."""
import pytest
import torch
from torch import nn

from timm_paf.attacks import CompileSettings, autoattack, check_state

SETTINGS = dict(eps=0.04, version='custom', attacks=['apgd-ce'], batch_size=4)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.rand(6, 1, 6, 6)
    return model, x, model(x).argmax(1)


@pytest.fixture
def kept(tmp_path):
    """The state of an AutoAttack that has ended."""
    autoattack(*problem(), **SETTINGS, state=tmp_path / 'state')
    return tmp_path / 'state'


@pytest.mark.parametrize('change', [
    dict(seed=1), dict(eps=0.05), dict(batch_size=3), dict(attacks=['apgd-ce', 'square']), dict(spare=False),
    dict(compile=CompileSettings(backend='eager'))],
    ids=lambda change: next(iter(change)))
def test_it_says_what_the_attack_would_say(kept, change):
    model, x, y = problem()
    before = {path: path.read_bytes() for path in kept.iterdir()}
    check_state(kept, model, x, y, **SETTINGS)
    messages = []
    for look in (lambda: check_state(kept, model, x, y, **{**SETTINGS, **change}),
                 lambda: autoattack(model, x, y, **{**SETTINGS, **change}, state=kept)):
        with pytest.raises(ValueError, match='is that of another run') as caught:
            look()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and {path: path.read_bytes() for path in kept.iterdir()} == before


def test_a_compiled_run_goes_on(tmp_path):
    settings = dict(SETTINGS, compile=CompileSettings(backend='eager'))
    autoattack(*problem(), **settings, state=tmp_path / 'state')
    check_state(tmp_path / 'state', *problem(), **settings)
    with pytest.raises(ValueError, match='compile'):
        check_state(tmp_path / 'state', *problem(), **SETTINGS)


@pytest.mark.parametrize('change, message', [
    (lambda model, x, y: (model, x * 0.5, y), 'other images'),
    (lambda model, x, y: (model, x, (y + 1) % 5), 'other labels'),
    (lambda model, x, y: (nn.Sequential(model), x, y), 'other model')], ids=['images', 'labels', 'model'])
def test_other_images_labels_or_weights(kept, change, message):
    with pytest.raises(ValueError, match=message):
        check_state(kept, *change(*problem()), **SETTINGS)


def test_what_is_no_state(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes').write_text('precious')
    (tmp_path / 'file').write_text('precious')
    for name in ('nowhere', 'empty'):  # of a run that was killed before it began
        check_state(tmp_path / name, *problem(), **SETTINGS)
    for name in ('mine', 'file'):
        with pytest.raises(ValueError, match='is there and no state of AutoAttack'):
            check_state(tmp_path / name, *problem(), **SETTINGS)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['empty', 'file', 'mine', 'notes']
