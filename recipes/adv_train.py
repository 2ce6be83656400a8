"""Train a network adversarially and measure its robustness.

    python recipes/adv_train.py --model resnet18_psoftplus
    python recipes/adv_train.py -c recipes/configs/rice2020_cifar10_linf.yaml --data-dir ~/data
    torchrun --nproc-per-node 8 recipes/adv_train.py -c FILE --experiment NAME --resume auto

Without -c and --dataset it trains on handwritten digits that are included in the package, with the settings of
recipes/configs/digits.yaml. With --dataset and without -c, the defaults of the flags hold. Flags override every
file, and --help lists them.

The folder of the run, --output/--experiment, receives:
    args.yaml              all settings
    last.pth.tar           the newest checkpoint; previous.pth.tar is the one before it
    model_best.pth.tar     the checkpoint with the highest validation accuracy under PGD
    summary.csv            one row per epoch
    selection.json         the best epoch, and how much lower the accuracy of the last epoch is
    report.json            clean, PGD and AutoAttack accuracy on the test images; report.html shows it with figures

A killed run resumes with `--resume auto` and reaches the same weights, bit for bit on the same machine.

`python -m timm_paf train` is the same command; its loop is Trainer.fit. Change the loop below to change this command.

Exit status: 0 finished; 1 failed; 2 wrong settings or files, nothing was written; 3 stopped by SIGTERM or SIGINT after
writing a checkpoint; 130 stopped at once by a second SIGINT.
"""
import sys
from collections.abc import Sequence

from timm_paf.engine import Trainer, dry_run, open_run, parse_train_config, run


def prepare(argv: Sequence[str] | None = None) -> Trainer | None:
    """Read the settings, open data, model and, with --resume, the checkpoint, and rehearse the run. Writes nothing.

    Returns None, with a message, if --resume names a run that has its report.json.
    """
    config = parse_train_config(argv, description='Train a network adversarially and measure its robustness.')
    return open_run(config)


def train(trainer: Trainer | None) -> None:
    """Train epoch by epoch. Then measure, on the test images, the checkpoint with the best validation accuracy."""
    if trainer is None:
        return
    if trainer.config.dry_run:
        dry_run(trainer)  # print settings, sizes and an estimate of time and memory
        return
    with trainer.running():  # SIGTERM or SIGINT: save a checkpoint after the current update, then leave with status 3
        while trainer.epoch < trainer.epochs:
            for batch in trainer.batches():  # the rest of this epoch; real images, maybe mixed with synthetic ones
                trainer.train_step(batch)  # attack, loss, gradients, optimizer, EMA of the weights, learning rate
            accuracies = trainer.validate() if trainer.validation_due else {}  # clean and under PGD, validation images
            row = trainer.end_epoch(accuracies)  # one row of summary.csv; increases trainer.epoch
            trainer.checkpoint()  # write last.pth.tar, model_best.pth.tar and summary.csv
            trainer.log(row)  # show the row in the terminal, TensorBoard and Weights & Biases, if they are on
    if trainer.is_primary:  # only process 0 measures
        trainer.evaluate()  # model_best.pth.tar: clean, PGD and AutoAttack accuracy; report.json, report.html


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 2 for errors in `prepare`, 1 for errors in `train`."""
    return run(lambda: prepare(argv), train)


if __name__ == '__main__':
    sys.exit(main())
