import dataclasses

import pytest
import yaml

from timm_paf.data import DataChanged
from timm_paf.engine.cli import RunFailed, find_config, parse_config, run
from timm_paf.engine.fields import Settings, assignments, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of every type."""
    config: str | None = setting(None, 'file')
    eps: str = setting('8/255', 'radius')
    steps: int = setting(10, 'steps', least=1, group='attack')
    rate: float | None = setting(0.5, 'rate 100 %', unset='no rate', below=1)
    paths: tuple[str, ...] = setting(('a',), 'paths')
    average: bool = setting(True, 'average')
    kind: str = setting('x', 'kind', choices=('x', 'y'))
    place: str = setting('auto', 'place', choices=('auto', 'yes', 'no'))


def parse(tmp_path, yaml_text, *argv):
    path = tmp_path / 'default.yaml'
    path.write_text(yaml_text)
    config = parse_config(Config, list(argv), default=lambda given: path)
    return dataclasses.replace(config, config=None)


def test_command_line_goes_before_yaml_before_defaults(tmp_path):
    config = parse(tmp_path, 'steps: 20\nrate: 0.1\n', '--rate', '0')
    assert config == Config(steps=20, rate=0.)


@pytest.mark.parametrize('yaml_text, argv, expected', [
    ('rate: 0\naverage: false\npaths: []', [], dict(rate=0., average=False, paths=())),
    ('rate: 1e-3', [], dict(rate=1e-3)),  # YAML reads this as text
    ('rate: null', [], dict(rate=None)),
    ('eps: 0.2\npaths: one.npz', [], dict(eps='0.2', paths=('one.npz',))),
    ('eps: 1.10\npaths: [010, 1:30, 1e5]', [], dict(eps='1.10', paths=('010', '1:30', '1e5'))),  # as written
    ('steps: 1_000', [], dict(steps=1000)),
    ('', ['--no-average', '--paths', 'p', 'q'], dict(average=False, paths=('p', 'q'))),
    ('', ['--paths'], dict(paths=())),
    ('steps: 1.0', [], dict(steps=1)), ('place: no', [], dict(place='no')), ('place: yes', [], dict(place='yes')),
], ids=str)
def test_values_keep_their_types(tmp_path, yaml_text, argv, expected):
    config = parse(tmp_path, yaml_text, *argv)
    assert config == dataclasses.replace(Config(), **expected)
    assert all(type(getattr(config, name)) is type(value) for name, value in expected.items())


@pytest.mark.parametrize('text, value', [
    ('0.1', 0.1), ('1.0e-1', 0.1), ('1e-1', 0.1), ('1E-5', 1e-5), ('-.5', -0.5), ('1.', 1.), ('3', 3), ('-3', -3),
    ('1_000', 1000), ('0x10', 16), ('[1e-1, 2]', [0.1, 2]), ('{rate: 1e-1}', {'rate': 0.1}), ('None', None),
    ('null', None), ('true', True), ('off', False), ('"1e-1"', '1e-1'), ('010', '010'), ('1:30', '1:30'),
    ('2012-01-01', '2012-01-01'), ('gelu', 'gelu'), ('1e', '1e'), ('e5', 'e5'), ('Nonesuch', 'Nonesuch')])
def test_values_of_assignments(text, value):
    """Numbers are those of Python: YAML itself reads 1e-1 and None as texts, 010 as 8, and 1:30 as 90."""
    (found,) = assignments((f'name={text}',), '--flag').values()
    assert found == value and type(found) is type(value)


def test_config_flag_replaces_the_default_file(tmp_path):
    (tmp_path / 'other.yaml').write_text('steps: 3\n')
    assert parse(tmp_path, 'rate: 0.9', '-c', str(tmp_path / 'other.yaml')) == Config(steps=3)


@pytest.mark.parametrize('yaml_text, argv, message', [
    ('step: 3', [], "unknown key 'step'; did you mean steps"), ('steps: 2.5', [], "--steps = '2.5'"),
    ('steps: many', [], "--steps = 'many'"), ('average: 1', [], "--average = '1'"),
    ('- a', [], 'holds a list'), ('a: [', [], 'cannot be read'), ('kind: z', [], "--kind = 'z': expected one of x, y"),
    ('paths: {a: 1}', [], '--paths = .*expected a list'), ('steps: null', [], '--steps = None'),
    ('steps: true', [], '--steps = True'), ('', ['--stepz', '3'], 'did you mean --steps'),
    ('', ['--steps', 'x'], "--steps = 'x'"), ('', ['-c', 'nowhere.yaml'], 'nowhere.yaml: there is no such file'),
    ('', ['--steps'], 'expected one argument'), ('', ['--steps', '0'], '--steps = 0: expected a number of 1 or more'),
    ('rate: 1', [], '--rate = 1.0: expected a number below 1'), ('rate: .nan', [], '--rate = nan'),
], ids=str)
def test_mistakes_are_named_in_a_line(tmp_path, yaml_text, argv, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(tmp_path, yaml_text, *argv)
    assert '\n' not in str(caught.value)


def fail(error):
    def raises(*_):
        raise error
    return raises


@pytest.mark.parametrize('prepare, execute, status, message', [
    (dict, lambda _: None, 0, ''), (fail(ValueError('bad\nvalue')), None, 2, 'error: bad value\n'),
    (fail(FileNotFoundError('gone')), None, 2, 'error: gone\n'), (dict, fail(RunFailed('NaN')), 1, 'stopped: NaN\n'),
    (dict, fail(KeyboardInterrupt()), 130, 'interrupted\n'), (fail(DataChanged('new')), None, 2, 'error: new\n'),
    (dict, fail(DataChanged('new')), 1, 'stopped: new\n'),
], ids=['fine', 'value', 'file', 'failed', 'interrupt', 'data changed on opening', 'data changed'])
def test_exit_status(capsys, prepare, execute, status, message):
    assert run(prepare, execute) == status
    assert capsys.readouterr().err == message


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ValueError):
        run(dict, fail(ValueError('a defect')))


def shown(tmp_path, capsys, yaml_text, *argv):
    with pytest.raises(SystemExit) as caught:
        parse(tmp_path, yaml_text, *argv, '--help')
    assert caught.value.code == 0
    return ' '.join(capsys.readouterr().out.split())


def test_help_shows_groups_choices_and_the_defaults_that_hold(tmp_path, capsys):
    text = shown(tmp_path, capsys, 'steps: 7\nrate: null\n')
    parts = 'attack: --steps N steps (default: 7)', 'rate 100 % (default: no rate)', '--no-average', '--kind {x,y}'
    for part in parts:
        assert part in text
    (tmp_path / 'other.yaml').write_text('steps: 3\n')
    text = shown(tmp_path, capsys, 'steps: 7\n', '-c', str(tmp_path / 'other.yaml'))
    assert 'steps (default: 3)' in text and 'rate 100 % (default: 0.5)' in text


def test_a_value_in_python_is_converted_and_checked():
    assert Config(eps=0.2, paths=['a', 'b'], steps='5') == Config(eps='0.2', paths=('a', 'b'), steps=5)
    with pytest.raises(ValueError, match='--kind'):
        Config(kind='z')


def test_yaml_round_trip(tmp_path):
    config = Config(eps='0.1', paths=(), rate=None, average=False)
    (tmp_path / 'a.yaml').write_text(yaml.safe_dump(config.to_dict()))
    assert Config.from_yaml(tmp_path / 'a.yaml') == config
    assert Config.from_yaml(tmp_path / 'a.yaml', steps=3) == dataclasses.replace(config, steps=3)


def test_shipped_configurations_are_found_by_name_and_by_their_path_in_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config('digits') == find_config('recipes/configs/digits.yaml')
    with pytest.raises(ValueError, match='did you mean digits'):
        find_config('digit')
    with pytest.raises(ValueError, match='no such file'):
        find_config('elsewhere/digits.yaml')
