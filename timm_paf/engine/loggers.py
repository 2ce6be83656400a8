"""Loggers of a run: TensorBoard, and Weights & Biases."""
import importlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_paf._files import write_text
from timm_paf.engine.callbacks import Callback, Row
from timm_paf.engine.train_config import TrainConfig

__all__ = ['Logger', 'TensorBoardLogger', 'WandbLogger', 'make_loggers']


class Logger(Callback):
    """Logs the measured numbers of each row; after a resume also the last row, which a killed run may not have logged.

    A new logger opens in `open`, implements `write` and ends in `on_end`.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.log: Any = None

    def open(self) -> Any:
        """Start the log and return it."""
        raise NotImplementedError

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch, counted from 0."""
        raise NotImplementedError

    def on_start(self, rows: Sequence[Row]) -> None:
        self.log = self.open()
        for row in rows[-1:]:
            self.on_epoch(row, shape={}, best=False)

    def on_epoch(self, row: Row, *, shape: Mapping[str, float], best: bool) -> None:
        numbers = {name: value for name, value in row.items() if value is not None}
        self.write(int(numbers.pop('epoch')), numbers)


class TensorBoardLogger(Logger):
    """Writes TensorBoard's files into `tensorboard` in the folder of the run."""
    module = 'torch.utils.tensorboard'

    def open(self) -> Any:
        return importlib.import_module(self.module).SummaryWriter(str(self.folder / 'tensorboard'))

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.log.add_scalar(name, value, epoch)
        self.log.flush()

    def on_end(self, error: BaseException | None) -> None:
        if self.log is not None:
            self.log.close()


class WandbLogger(Logger):
    """Logs to Weights & Biases, where a resumed run continues as the same run."""
    module = 'wandb'

    def open(self) -> Any:
        file = self.folder / 'wandb' / 'id'  # the same after a resume, and another one for another folder of this name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(f'{self.folder.name[:100]}-{secrets.token_hex(4)}', file)
        return importlib.import_module(self.module).init(
            project=self.config.wandb_project, name=self.folder.name, id=file.read_text(encoding='utf-8'),
            resume='allow', tags=list(self.config.wandb_tags), config=self.config.to_dict(), dir=str(self.folder))

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self.log.log({'epoch': epoch, **numbers}, step=epoch)

    def on_end(self, error: BaseException | None) -> None:
        if self.log is not None:
            self.log.finish(exit_code=int(error is not None))


def make_loggers(config: TrainConfig, folder: Path) -> list[Callback]:
    """The loggers of the settings; ValueError if one is not installed."""
    loggers: list[Callback] = []
    for wanted, name, logger in (
            (config.log_tensorboard, 'tensorboard', TensorBoardLogger), (config.log_wandb, 'wandb', WandbLogger)):
        if wanted:
            try:
                importlib.import_module(logger.module)
            except ImportError:
                raise ValueError(f'--log-{name}: {name} is not installed; pip install {name}.') from None
            loggers.append(logger(config, folder))
    return loggers
