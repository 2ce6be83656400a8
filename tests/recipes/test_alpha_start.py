"""The command that follows alpha: what it says of runs that keep and lose it."""
import json

import pytest

from recipes.benchmarks import alpha_start as benchmark

DIGITS = ['--model', 'wrn10_2_pssilu', '--device', 'cpu', '--num-synthetic', '500', '--batch-size', '32']


def test_digits_keep_alpha_for_300_updates(capsys):
    """The shipped configuration with its rate for 128 images, smaller batches and a shorter attack."""
    assert benchmark.main([*DIGITS, '--lr', '0.1', '--attack-steps', '1', '--updates', '300']) == 0
    assert '300 updates' in capsys.readouterr().out


@pytest.mark.parametrize('clip, status', [('none', 1), ('0.002', 0)])
def test_the_clip_keeps_alpha_where_it_is_lost_without(tmp_path, clip, status):
    path = tmp_path / 'a.json'
    flags = ['--lr', '1', '--attack-steps', '1', '--updates', '30', '--alpha-grad-clip', clip, '--json', str(path)]
    assert benchmark.main([*DIGITS, *flags]) == status
    written = json.loads(path.read_text())
    assert written['settings']['lr'] == 1 and len(written['rows']) == 30
    steps = [abs(b['least'] - a['least']) for a, b in zip(written['rows'], written['rows'][1:], strict=False)]
    assert (max(steps) <= 1 * 0.002 / (1 - 0.9) + 6e-3) is (status == 0)  # lr * clip / (1 - momentum), and weight decay


def test_softplus_starts_as_published(capsys):
    found = []
    for flags in ([], ['--softplus']):
        assert benchmark.main([*DIGITS, '--attack-steps', '1', '--updates', '1', '--lr', '0', *flags]) == 0
        found.append(capsys.readouterr().out.splitlines()[1].split())
    (_, alpha, *_, loss), (_, other, *_, other_loss) = found
    assert float(other) == pytest.approx(float(alpha)) and float(other_loss) == pytest.approx(float(loss), abs=2e-3)


@pytest.mark.parametrize('flags', [['--model', 'wrn10_2_relu'], ['--updatse', '3']], ids=str)
def test_mistakes(capsys, flags):
    assert benchmark.main([*DIGITS, *flags]) == 2
    assert flags[0] in capsys.readouterr().err
