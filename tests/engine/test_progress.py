"""Rows of the terminal, which are read as a person reads them: by columns; and estimates, with a clock that is set."""
import io
import itertools
import math

import pytest
import torch
from rich.console import Console

from timm_paf.engine import TrainConfig, Trainer
from timm_paf.engine.progress import TimeLeft, TrainingView, number, say

SHAPES = {
    'one': {'alpha': 1.25, 'beta': -3e-6}, 'no beta': {'alpha': 1.25}, 'none': {},
    'many': {f'act{i}.{name}': value for i in range(9) for name, value in (('alpha', i / 4 + 0.25), ('beta', -3e-6))},
    'channels': {f'{name}[{i}]': value for i, sign in enumerate((-1, 1)) for name, value in (
        ('alpha', 1.25 + sign), ('beta', -3e-6 + sign / 8))},
}
EXTREME = [0., 100., 1e-7, -1e-7, 999.9996, -12345.6, 1e30, -3.4e38, math.nan, math.inf, -math.inf]


class Clock:
    now = 0.

    def __call__(self):
        return self.now


def time_left(**changes):
    return TimeLeft(**{**dict(
        epochs=20, images=1000., passes=22, interval=1, validation=4000., measurement=50000., autoattack=(2e4, 4e5),
        clock=Clock()), **changes})


def shown(width=80, *, terminal=False, **changes):
    """A view and the text that it writes to."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, force_interactive=False)
    return TrainingView(console, steps=10, device=torch.device('cpu'), time=time_left(**changes)), text


def row(epoch=0, value=12.5, speed=400., validated=True):
    return {'epoch': epoch, 'train_loss': value, 'train_robust': value, 'train_images_per_second': speed,
            'train_data_wait': 0., **dict.fromkeys(('eval_clean', 'eval_robust'), value if validated else None)}


def ends(line):
    """Where words end in a line."""
    return {i + 1 for i, letter in enumerate(line) if letter != ' ' and (line + ' ')[i + 1] == ' '}


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('epochs', [2, 999])
def test_columns_align_under_their_headings_at_any_value(shape, epochs):
    view, text = shown(epochs=epochs)
    rows = [row(0, 100.), row(1, 0.), *(row(epochs - n, 12.5, validated=n % 2) for n in (1, 2))]
    for number_, line in enumerate(rows):
        view.on_epoch({**line, 'train_robust': math.nan} if number_ == 1 else line, shape=shape, best=number_ == 0)
    _, heading, *lines = text.getvalue().splitlines()
    columns = ends(heading)
    assert len(lines) == len(rows) and max(map(len, lines)) <= 80
    for line in lines:
        assert ends(line.replace('best', '    ').replace('0 s', '0-s')) <= columns, line
    assert lines[0].count('100.0') == 3 + lines[0].count('100.000') and 'best' in lines[0]
    assert heading.split().count('alpha') == ('alpha' in ''.join(shape)) and text.getvalue().count('images/s') == 1


@pytest.mark.parametrize('value', EXTREME)
def test_no_value_leaves_its_column(value):
    assert len(number(value)) <= 8 and float(number(value)) == pytest.approx(value, rel=0.5, nan_ok=True)
    if value >= 0 or math.isnan(value):
        assert len(number(value, 7)) <= 7
    view, _ = shown(epochs=999)
    line = view.row(row(998, 100., speed=12345678.), dict.fromkeys(('alpha', 'beta'), value), 3.59e7, best=True)
    assert len(line) <= 80 and len(line.split()) == 11


@pytest.mark.parametrize('shape', ['one', 'many', 'channels'])
def test_many_parameters_show_their_mean(shape):
    view, _ = shown()
    assert view.row(row(), SHAPES[shape], 5.).split()[5:7] == ['1.250', '-3.0e-06']


def test_a_terminal_shows_the_row_in_progress_in_the_columns_of_the_others():
    view, text = shown(terminal=True)
    metrics = {'loss': 1.5, 'robust': 25., 'images_per_second': 400., 'data_wait': 0.}
    view.on_update(0, 0, metrics, SHAPES['one'])
    *headings, running = view.rows.plain.splitlines()
    view.on_epoch(row(), shape=SHAPES['one'], best=False)
    assert text.getvalue().splitlines()[:2] == headings
    finished = text.getvalue().splitlines()[2]
    assert ends(running) < ends(finished) and running.split()[:3] == ['1/20', '1.500', '25.0']
    view.on_update(1, 0, metrics, SHAPES['one'])
    assert len(view.rows.plain.splitlines()) == 1  # the headings stand above already


@pytest.mark.parametrize('terminal', [False, True])
def test_long_messages_wrap_on_a_terminal_only(terminal):
    view, text = shown(terminal=terminal)
    view.on_message('word ' * 40 + '\nend')
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ['word'] * (3 if terminal else 1) + ['end']
    assert ' '.join(text.getvalue().split()) == 'word ' * 40 + 'end'
    assert not terminal or max(map(len, lines)) <= 80


@pytest.mark.parametrize('changes', [
    {}, {'interval': 7}, {'validation': 0., 'measurement': 0., 'autoattack': (0., 0.)}, {'validation': 40000.}],
    ids=['usual', 'interval', 'training only', 'long validation'])
@pytest.mark.parametrize('validation_speed', [1, 2], ids=['same speed', 'validation is faster'])
def test_the_estimate_includes_what_is_to_come_and_does_not_jump(changes, validation_speed):
    view, _ = shown(**changes)
    clock, of = view.time.clock, view.time
    estimates = []
    for epoch in range(of.epochs):
        for step in range(10):
            clock.now += 100 * of.passes / 1000 + 3 * (epoch == step == 0)  # the first update also warms up
            view.time.seconds(epoch + (step + 1) / 10, epoch)
        if (epoch + 1) % of.interval == 0 or epoch + 1 == of.epochs:
            clock.now += of.validation / 1000 / validation_speed
        accuracy = 20 + 1.5 * epoch  # the share of robust images grows, and with it the time of AutoAttack
        view.on_epoch(row(epoch, accuracy), shape={}, best=True)
        estimates.append((clock.now, view.time.seconds(epoch + 1, epoch + 1)))
    measured = of.measurement + of.autoattack[0] + 0.485 * of.autoattack[1]
    end = clock.now + measured / 1000
    assert estimates[-1][1] == pytest.approx(measured / 1000, rel=0.35 if validation_speed > 1 else 0.01)
    for (before, one), (now, other) in itertools.pairwise(estimates):
        # the end of the run as estimated after one epoch and after the next
        assert now + other == pytest.approx(before + one, rel=0.2)
    assert estimates[0][0] + estimates[0][1] == pytest.approx(end, rel=0.35)


def test_the_time_is_said_once_and_then_in_each_row():
    view, text = shown(epochs=2, validation=0., measurement=0., autoattack=(0., 0.))
    for step in range(3):
        view.time.clock.now += 30
        view.on_update(0, step, {'loss': 1.}, {})
    assert '510 s' not in text.getvalue() and '9 min of training' in text.getvalue()  # 18 updates of 30 s are left
    view.time.clock.now += 7 * 30
    view.on_epoch(row(), shape={}, best=False)
    assert text.getvalue().count('about') == 1 and text.getvalue().rstrip().endswith('5 min')


@pytest.mark.parametrize('changes, passes', [
    ({}, (20 * 22 * 32 + 2 * 180 * 22, 360 + 360 * 41 + 24 * (202 + 0.5 * (9 * 202 + 9 * 300 + 5000)))),
    ({'task': 'plain', 'val_interval': 2, 'autoattack': 'none'}, (20 * 2 * 32 + 180 * 22, 360 + 360 * 41)),
    ({'task': 'trades', 'model_ema': True, 'n_pgd': 10, 'autoattack': 'apgd-ce'},
     (20 * 24 * 32 + 4 * 180 * 22, 360 + 10 * 41 + 24 * 5 * 202)),  # five restarts, as on its own
], ids=['standard', 'plain', 'trades'])
def test_the_work_of_a_run_from_its_settings(tmp_path, changes, passes):
    trainer = Trainer(TrainConfig(**{**dict(
        dataset='digits', model='wrn10_2_pssilu', epochs=2, updates_per_epoch=10, batch_size=32, n_examples=24,
        eps='0.2', device='cpu', output=str(tmp_path), autoattack='standard'), **changes}),
        console=Console(quiet=True))
    found = trainer.time_left().work(0, 0)
    assert found[0] == passes[0] and found[1] == pytest.approx(passes[1], rel=0.05)
    trainer.processes.close()


def test_messages_keep_marks_and_brackets():
    text = io.StringIO()
    say(Console(file=text, width=40), '[bold] act1.alpha[3] went')
    assert text.getvalue() == '[bold] act1.alpha[3] went\n'
