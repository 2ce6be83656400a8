"""The rules of the house that a program can check."""
import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'timm_paf'
GROUND = ['_openmp', '_files', '_versions', '_random', '_dtypes', '_normalized', '_distributed']
ROOMS = ['activations', 'kernels', 'models', 'attacks', 'tasks', 'data', 'evaluation', 'engine', 'synthesis']
ALONE = {'attacks', 'data'}  # they import the ground floor only
SOURCES = sorted(path for path in PACKAGE.rglob('*.py'))


def module_name(path, root=PACKAGE):
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(['timm_paf', *(parts[:-1] if parts[-1] == '__init__' else parts)])


def imported(path, known):
    """Modules of the package that a file imports when it is loaded or called, except for types."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If) and 'TYPE_CHECKING' in ast.dump(branch.test)
        for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f'{node.module}.{alias.name}' for alias in node.names}
            modules = names & known
            yield from modules
            if modules != names and node.module in known:
                yield node.module


def import_graph(root=PACKAGE):
    paths = {module_name(path, root): path for path in root.rglob('*.py')}
    return {name: set(imported(path, set(paths))) - {name} for name, path in paths.items()}


def circles(graph):
    """Groups of modules that import each other, directly or through others. `__init__` files are left out."""
    reach = {name: set() for name in graph}
    for start in graph:
        stack = list(graph[start])
        while stack:
            name = stack.pop()
            if name in graph and name not in reach[start]:
                reach[start].add(name)
                stack += graph[name]
    return sorted(name for name in graph if name in reach[name])


def without_packages(graph, root=PACKAGE):
    packages = {module_name(path, root) for path in root.rglob('__init__.py')}
    return {name: used - packages for name, used in graph.items() if name not in packages}


def test_the_walk_sees_every_kind_of_import_and_a_circle(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'a.py').write_text('from timm_paf.data import b\nimport timm_paf.c\n')
    (tmp_path / 'data' / 'b.py').write_text('def f():\n    from timm_paf.data.a import x\n')
    (tmp_path / 'c.py').write_text('')
    graph = import_graph(tmp_path)
    assert graph['timm_paf.data.a'] == {'timm_paf.data.b', 'timm_paf.c'}
    assert circles(graph) == ['timm_paf.data.a', 'timm_paf.data.b']


def test_no_files_import_each_other_in_a_circle():
    assert circles(without_packages(import_graph())) == []


def test_imports_point_up_the_list_of_rooms():
    wrong, order = [], GROUND + ROOMS
    for module, used in import_graph().items():
        _, room, *_ = f'{module}.'.split('.')
        for other in used - {'timm_paf', 'timm_paf._version'} if room in order else ():
            above = other.split('.')[1]
            if order.index(above) > order.index(room) or (room in ALONE and above not in (*GROUND, room)):
                wrong.append(f'{module} imports {other}')
    assert wrong == []


def test_every_file_belongs_to_a_room():
    top = {module_name(path).split('.')[1] for path in SOURCES if module_name(path) != 'timm_paf'}
    assert top == {*GROUND, *ROOMS, '_version', '__main__'}


def test_attacks_know_no_timm():
    for path in PACKAGE.glob('attacks/*.py'):
        assert not re.search(r'^\s*(from|import) timm\b(?!_)', path.read_text(), re.MULTILINE), path


def test_only_the_registry_touches_timms_activation_tables():
    assert [path.name for path in SOURCES if '_ACT_LAYER' in path.read_text()] == ['registry.py']


@pytest.mark.parametrize('path', sorted(ROOT.glob('recipes/*.py')), ids=lambda path: path.name)
def test_recipes_are_short_and_use_public_names(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 130
    assert 'sys.path' not in text
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
            [f'{node.module}.{alias.name}' for alias in node.names] if isinstance(node, ast.ImportFrom) else [])
        assert not any(part.startswith('_') for module in modules for part in module.split('.')), modules


def test_top_level_holds_what_it_should():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a checkout')
    assert {line.split('/')[0] for line in tracked.stdout.splitlines()} <= {
        'timm_paf', 'recipes', 'tests', 'docs', 'pyproject.toml', 'CHANGELOG.md', 'README.md', 'LICENSE',
        'CITATION.cff', '.ci', '.gitignore'}


def test_the_map_in_the_docs_names_files_that_exist():
    table = (ROOT / 'docs' / 'contributing.md').read_text().split('## Where do I change')[1].split('## Style')[0]
    named = re.findall(r'`(timm_paf/[^`]+)`', table)
    assert table.count('\n| ') == 22 and [name for name in named if not (ROOT / name).exists()] == []
