"""The house rules that a program can check."""
import ast
import importlib
import inspect
import pkgutil
import subprocess
from pathlib import Path

import pytest

import timm_paf

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'timm_paf'
ROOMS = ['activations', 'kernels', 'models', 'attacks', 'tasks', 'data', 'evaluation']
MAY_IMPORT = {
    # each room sees those above it, except the two that must stand alone
    **{room: set(ROOMS[:i + 1]) for i, room in enumerate(ROOMS)},
    'attacks': {'attacks'},
    'data': {'data'},
}
SOURCES = sorted(path for room in ROOMS for path in (PACKAGE / room).rglob('*.py'))


def imported_rooms(path, root=PACKAGE):
    """Rooms of timm_paf that a file imports, relative or absolute."""
    package = ['timm_paf', *path.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *filter(None, [node.module])])
            names = [f'{module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split('.')
            if parts[0] == 'timm_paf' and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]


def test_the_walk_sees_both_kinds_of_import(tmp_path):
    room = tmp_path / 'data'
    room.mkdir()
    (room / 'a.py').write_text('from ..models import x\nfrom timm_paf.attacks import y\nimport timm_paf.tasks.z\n')
    assert list(imported_rooms(room / 'a.py', tmp_path)) == ['models', 'attacks', 'tasks']


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up_the_list_of_rooms(path):
    room = path.relative_to(PACKAGE).parts[0]
    assert set(imported_rooms(path)) <= MAY_IMPORT[room]


@pytest.mark.parametrize('path', [p for p in SOURCES if 'attacks' in p.parts], ids=lambda p: p.name)
def test_attacks_know_no_timm(path):
    imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [alias.name for n in imports if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or '' for n in imports if isinstance(n, ast.ImportFrom) and not n.level]
    assert not any(name == 'timm' or name.startswith('timm.') for name in names)


def test_only_the_registry_touches_timms_activation_tables():
    users = [p.name for p in SOURCES if '_ACT_LAYER' in p.read_text()]
    assert users == ['registry.py']


def public_objects():
    for info in pkgutil.walk_packages(timm_paf.__path__, 'timm_paf.'):
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if error.name != 'triton':  # which comes with torch on some platforms only
                raise
            continue
        for name in getattr(module, '__all__', ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(thing, id=f'{info.name}.{name}')


@pytest.mark.parametrize('thing', list(public_objects()))
def test_public_names_say_what_they_are(thing):
    doc = inspect.getdoc(thing) or ''
    assert doc and doc != inspect.getdoc(type(thing))
    if inspect.isclass(thing):
        assert thing.__doc__, f'{thing} only inherits its docstring'


def test_top_level_holds_what_it_should():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a checkout')
    assert {line.split('/')[0] for line in tracked.stdout.splitlines()} <= {
        'timm_paf', 'recipes', 'tests', 'docs', 'pyproject.toml', 'CHANGELOG.md', 'README.md', 'LICENSE',
        'CITATION.cff', '.ci', '.gitignore'}
