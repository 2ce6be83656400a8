"""Adversarial training, from a data set and a model's name to a robustness report.

    python recipes/adv_train.py --model resnet18_psoftplus
    torchrun --nproc-per-node 8 recipes/adv_train.py -c FILE --experiment NAME --resume auto

Without other arguments it trains on the embedded digits with the settings of configs/digits.yaml. The folder of a run
(--output DIR, --experiment NAME) receives args.yaml, summary.csv, selection.json, report.json, report.html and the
checkpoints last.pth.tar, previous.pth.tar and model_best.pth.tar. A killed run continues with --resume auto to the same
result.

`python -m timm_paf train` is the same command. This file shows its loop, in which you can change each step.

Exit status: 0 finished, 1 failed, 2 wrong settings or files, 3 stopped by SIGTERM or SIGINT with a checkpoint written,
130 stopped by a second SIGINT.
"""
import os
import sys
from collections.abc import Sequence

if 'OMP_WAIT_POLICY' not in os.environ:  # spinning OpenMP threads make training on a busy CPU up to 40 times slower
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
    os.environ.setdefault('KMP_BLOCKTIME', '1')

from timm_paf.engine import Trainer, dry_run, open_run, parse_train_config, run


def prepare(argv: Sequence[str] | None = None) -> Trainer | None:
    """Read the settings, then open data, model and checkpoint; nothing is written yet. None if the run is finished."""
    config = parse_train_config(argv, description=(__doc__ or '').splitlines()[0])
    return open_run(config)


def train(trainer: Trainer | None) -> None:
    """Train epoch by epoch, then measure the checkpoint that is best on the validation split on the test split."""
    if trainer is None:
        return
    if trainer.config.dry_run:
        dry_run(trainer)
        return
    with trainer.running():  # on SIGTERM and SIGINT it saves and stops
        while trainer.epoch < trainer.epochs:
            for batch in trainer.batches():  # real and synthetic images of one update
                trainer.train_step(batch)  # attack, loss, backward pass, optimizer, average, schedule
            accuracies = trainer.validate() if trainer.validation_due else {}  # clean and under PGD
            row = trainer.end_epoch(accuracies)
            trainer.checkpoint()  # last.pth.tar, model_best.pth.tar and summary.csv
            trainer.log(row)  # terminal, TensorBoard, Weights & Biases
    if trainer.is_primary:
        trainer.evaluate()  # clean, PGD and AutoAttack accuracy; writes report.json and report.html


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run(lambda: prepare(argv), train)


if __name__ == '__main__':
    sys.exit(main())
