"""Measure a checkpoint: clean, PGD and AutoAttack accuracy on the test split, and trust checks of the result.

    python recipes/adv_validate.py --checkpoint DIR/model_best.pth.tar
    torchrun --nproc-per-node 2 recipes/adv_validate.py --checkpoint DIR/model_best.pth.tar --output FOLDER

Model, data set and eps are those of the training run unless flags override them. With `--output` an interrupted
AutoAttack resumes with `--resume`, in any number of processes. `python -m timm_paf validate` is the same command.
"""
import sys
from collections.abc import Sequence

from timm_paf.engine import Measurement, parse_validate_config, run


def prepare(argv: Sequence[str] | None = None) -> Measurement:
    """Read the settings, then open checkpoint and images and check them; nothing is written yet."""
    config = parse_validate_config(argv, description=(__doc__ or '').splitlines()[0])
    return Measurement(config)


def measure(measurement: Measurement) -> None:
    """Measure, show the tables, and write the files that the settings name."""
    report = measurement.run()  # attacks, curve over eps, corruptions, trust checks
    measurement.write(report)  # report.json, report.html, RobustBench's entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(lambda: prepare(argv), measure)


if __name__ == '__main__':
    sys.exit(main())
