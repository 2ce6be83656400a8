"""Ask which shape of activation makes a network robust: train a grid of activations, and compare them.

    python recipes/shape_sweep.py -c sweep_digits                       the embedded digits, a few minutes
    python recipes/shape_sweep.py -c FILE --dry-run                     the cells, and the time of one
    python recipes/shape_sweep.py -c FILE --devices cuda:0 cuda:1       one worker per device
    python recipes/shape_sweep.py -c FILE --time-limit 540              stop after 9 minutes; the same command continues
    python recipes/shape_sweep.py -c FILE --slurm array_size=8 timeout_min=60 gpus_per_node=1

A cell of the grid is a training run with an activation, maybe with fixed parameters, a seed, and other settings. Stop
the command at any moment: the next call continues, and repeats no cell that is done. A cell that fails does not stop
the others; the next call tries it again. Several calls with the same folder share the cells.

The folder --output receives:
    CELL/           the run, as adv_train.py writes it; log.txt, error.txt, last/report.json (of the last checkpoint)
    results.csv     a row for the best and one for the last checkpoint of each cell; with pyarrow also results.parquet
    report.html     tables, figures, differences to ReLU and SiLU, rank correlations

Exit status: 0 all cells are done; 1 some failed; 2 wrong settings or files; 3 cells are left: the time is over, a
signal stopped the command, or other calls run them.
"""
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from timm_paf.engine import (
    RunFailed,
    RunStopped,
    Sweep,
    SweepConfig,
    cell_state,
    check_sweep,
    list_cells,
    read_sweep,
    run,
    run_sweep,
    submit_sweep,
    sweep_page,
    sweep_rows,
    write_table,
)
from timm_paf.engine.cli import assignments, parse_config


def prepare(argv: Sequence[str] | None = None) -> tuple[SweepConfig, Sweep, Path]:
    """Read the settings and the grid; writes nothing."""
    config = parse_config(SweepConfig, argv, description=(__doc__ or '').splitlines()[0], reads_config=False)
    sweep = read_sweep(config.config)
    output = Path(config.output or Path('output') / sweep.name)
    if config.report_only and not output.is_dir():
        raise ValueError(f'--output {output}: there is no such folder with runs.')
    check_sweep(sweep, output)
    return config, sweep, output


def execute(prepared: tuple[SweepConfig, Sweep, Path]) -> None:
    """Run the cells that are not done, then write table and report."""
    config, sweep, output = prepared
    workers = config.workers or len(config.devices) or 1
    if config.dry_run:
        print('\n'.join(list_cells(sweep, output, workers=workers, device=next(iter(config.devices), None))))
        return
    if not config.report_only:
        try:
            if config.slurm:
                jobs = submit_sweep(
                    sweep, output, assignments(config.slurm, '--slurm'), workers=workers, devices=config.devices,
                    threads=config.threads)
                print(f'submitted {len(jobs)} jobs: {", ".join(jobs)}; then make the report with --report-only')
                return
            run_sweep(
                sweep, output, workers=workers, devices=config.devices, threads=config.threads,
                time_limit=config.time_limit)
        except (ValueError, OSError) as error:
            raise RunFailed(str(error)) from error
    report(sweep, output)


def report(sweep: Sweep, output: Path) -> None:
    """Write results.csv and report.html from the runs in the folder, and say what is missing."""
    states = {cell.name: cell_state(output / cell.name) for cell in sweep.cells}
    rows = sweep_rows(output)
    if rows:
        write_table(rows, output)
        (output / 'report.html').write_text(sweep_page(rows, output, title=f'Sweep {sweep.name}', states=states))
        print(f'results in {output}; open report.html in a browser')
    counts = Counter(states.values())
    print(f'{len(states)} cells: {", ".join(f"{number} {state}" for state, number in counts.items())}')
    if counts['failed']:
        raise RunFailed(f'{counts["failed"]} cells failed; the same command tries them again.')
    if counts['done'] < len(states):
        raise RunStopped(f'{len(states) - counts["done"]} cells are left; the same command continues.')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run(lambda: prepare(argv), execute)


if __name__ == '__main__':
    sys.exit(main())
