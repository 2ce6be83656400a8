"""How libraries are built and kept."""
import os
import shutil
import stat
import subprocess
import sys

import pytest

from timm_paf.kernels import compiler

DEFINES = ('-DACTIVATION=prelu0', '-DSTORAGE=float', '-DCOMPUTE=float')
BUILD = f'from timm_paf.kernels import compiler; print(compiler.build({DEFINES}).timm_paf_run is not None)'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TIMM_PAF_CACHE', str(tmp_path))
    remembered = compiler._compiler, compiler._machine
    for function in remembered:
        function.cache_clear()
    yield tmp_path / 'kernels'
    for function in remembered:
        function.cache_clear()


def script(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)


def test_a_library_is_made_once(cache, monkeypatch):
    compiler.build(DEFINES)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700  # it belongs to its user
    (library,) = cache.iterdir()
    made = library.stat().st_mtime_ns
    monkeypatch.setattr(compiler, '_compile', lambda *_: pytest.fail('compiled again'))
    compiler.build(DEFINES)
    assert [p.stat().st_mtime_ns for p in cache.iterdir()] == [made]


def test_processes_that_start_together_each_get_a_whole_library(cache):
    processes = [
        subprocess.Popen([sys.executable, '-c', BUILD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ['True'] * 2
    (library,) = cache.iterdir()
    assert library.suffix == '.so'


@pytest.mark.parametrize('text', ['printf half > "$last"; exit 1', 'kill -9 $$'], ids=['leaves a part', 'killed'])
def test_a_compiler_that_fails_leaves_nothing(cache, tmp_path, monkeypatch, text):
    find_output = 'for last in "$@"; do :; done; case "$*" in *--version*) exit 0;; esac; '
    monkeypatch.setenv('CXX', script(tmp_path / 'broken', find_output + text))
    with pytest.raises(compiler.BuildError, match=r'broken failed \('):
        compiler.build(DEFINES)
    assert list(cache.iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_an_error_with_the_reason(cache, tmp_path, monkeypatch):
    text = 'for last in "$@"; do :; done; case "$*" in *--version*) exit 0;; esac; printf "no library" > "$last"'
    monkeypatch.setenv('CXX', script(tmp_path / 'odd', text))
    with pytest.raises(compiler.BuildError, match='cannot be written to the cache or loaded'):
        compiler.build(DEFINES)


def test_flags_that_a_compiler_refuses_are_left_out(cache, tmp_path, monkeypatch):
    real = ' '.join(compiler._compiler())
    text = f'case "$*" in *native*|*fopenmp*) echo unknown option >&2; exit 1;; esac; exec {real} "$@"'
    monkeypatch.setenv('CXX', script(tmp_path / 'plain', text))
    compiler._compiler.cache_clear()
    assert compiler.build(DEFINES).timm_paf_run


def test_where_the_cache_cannot_be_written_the_library_is_for_the_process(tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    found = subprocess.run(
        [sys.executable, '-c', BUILD], capture_output=True, text=True,
        env={**os.environ, 'TIMM_PAF_CACHE': str(file), 'TMPDIR': str(tmp_path)})
    assert found.stdout.strip() == 'True', found.stderr
    assert len(list(tmp_path.glob('timm_paf-*/*.so'))) == 1


@pytest.mark.parametrize('change', ['source', 'flags', 'machine'])
def test_what_a_library_depends_on_is_in_its_name(cache, tmp_path, monkeypatch, change):
    monkeypatch.setattr(compiler, '_compile', lambda _, output: output.touch())
    monkeypatch.setattr(compiler.ctypes, 'CDLL', str)
    compiler.build(DEFINES)
    if change == 'source':
        other = shutil.copytree(compiler.SOURCE.parent, tmp_path / 'other')
        (other / 'numbers.h').write_text((other / 'numbers.h').read_text() + '\n// changed\n')
        monkeypatch.setattr(compiler, 'SOURCE', other / compiler.SOURCE.name)
    elif change == 'flags':
        monkeypatch.setattr(compiler, '_BASE', (*compiler._BASE, '-DOTHER'))
    else:
        monkeypatch.setattr(compiler, '_machine', lambda: 'another processor')
    compiler.build(DEFINES)
    assert len(list(cache.iterdir())) == 2
