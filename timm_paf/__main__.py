"""Commands of the package: python -m timm_paf [train|validate] [flags].

    python -m timm_paf              versions, for bug reports
    python -m timm_paf train        adversarial training; --help lists its flags
    python -m timm_paf validate     measure a checkpoint; --help lists its flags
"""
import sys

from timm_paf._versions import device_names, library_versions

USAGE = 'usage: python -m timm_paf [train|validate] [flags]'


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        Exit status: 0, or 2 for a wrong command; the commands document theirs.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        for name, version in library_versions().items():
            print(f'{name} {version}')
        print('devices:', '; '.join(device_names()))
        return 0
    command, *flags = argv
    if command in ('train', 'validate'):
        from timm_paf.engine import commands
        return getattr(commands, command)(flags)
    if command in ('-h', '--help'):
        print(__doc__)
        return 0
    print(f'error: {command}: there is no such command; {USAGE}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
