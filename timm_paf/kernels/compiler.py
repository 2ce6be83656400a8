"""Builds the C++ kernels once per machine, and keeps the shared library in the user's cache."""
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from timm_paf._files import cache_dir

__all__ = ['BuildError', 'build']

SOURCE = Path(__file__).with_name('cpp') / 'activations.cpp'
_BASE = ('-std=c++17', '-O3', '-fno-math-errno', '-fno-trapping-math', '-fPIC', '-shared')
# tried in this order: the option for this processor depends on the compiler, and OpenMP may be missing
_CHOICES = (('-march=native', '-fopenmp'), ('-mcpu=native', '-fopenmp'), ('-fopenmp',), ('-fopenmp-simd',), ())


class BuildError(RuntimeError):
    """The library cannot be built or loaded; the message gives the reason."""


@functools.cache
def _compiler() -> tuple[str, ...]:
    """The command of a C++ compiler: $CXX, or the first that is installed."""
    if given := os.environ.get('CXX'):
        return tuple(shlex.split(given))
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return (name,)
    raise BuildError('there is no C++ compiler (c++, g++ or clang++; or set CXX)')


@functools.cache
def _machine() -> str:
    """Compiler, processor and torch version: a library works only where all of them are the same."""
    try:
        version = subprocess.run([*_compiler(), '--version'], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f'{shlex.join(_compiler())} does not run ({error})') from None
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8', errors='replace').splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    capability = torch.backends.cpu.get_cpu_capability()
    return '\n'.join((version, platform.machine(), platform.processor(), flags, capability, torch.__version__))


def _commands(defines: tuple[str, ...]) -> list[list[str]]:
    """Commands to try in turn, without the name of the output."""
    # the OpenMP library that torch uses, so that the process has one pool of threads
    openmp = list(Path(torch.__file__).parent.joinpath('lib').glob('libgomp*.so*'))
    commands = []
    for flags in _CHOICES:
        start = [*_compiler(), *_BASE, *flags, *defines, str(SOURCE)]
        if '-fopenmp' in flags and len(openmp) == 1:
            commands.append([*start, '-Wl,--as-needed', str(openmp[0])])
        commands.append(start)
    return commands


def _compile(defines: tuple[str, ...], output: Path) -> None:
    message = ''
    for command in _commands(defines):
        try:
            result = subprocess.run(
                [*command, '-o', str(output)], capture_output=True, text=True, timeout=300,
                env={**os.environ, 'LC_ALL': 'C'})
        except (OSError, subprocess.SubprocessError) as error:
            message = str(error)
        else:
            if result.returncode == 0:
                return
            message = (result.stderr.strip().splitlines() or [f'exit status {result.returncode}'])[0]
    raise BuildError(f'{shlex.join(_compiler())} failed ({message})')


def build(defines: tuple[str, ...]) -> ctypes.CDLL:
    """Load the library of `SOURCE` with definitions such as '-DACTIVATION=pssilu' from the cache, or build it.

    Processes that start together may each build it; the file always appears complete under its name.

    Raises:
        BuildError: If there is no compiler, it fails, or the library cannot be loaded.
    """
    sources = [path.read_text(encoding='utf-8') for path in sorted(SOURCE.parent.iterdir()) if path.is_file()]
    commands = map(shlex.join, _commands(defines))
    key = hashlib.sha256('\0'.join((*sources, *commands, _machine())).encode()).hexdigest()
    try:
        folder = cache_dir() / 'kernels'
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f'{folder} cannot be written')
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix='timm_paf-'))  # for this process only
    path = folder / f'{key[:32]}.so'
    try:
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as own:
                partial = Path(own) / path.name
                _compile(defines, partial)
                os.replace(partial, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(
            f'the compiled C++ functions cannot be written to the cache or loaded from it '
            f'({error})') from None
