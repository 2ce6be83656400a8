"""Loggers of a run: TensorBoard, and Weights & Biases."""
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_paf._files import whole_file
from timm_paf.engine.callbacks import Callback, Row
from timm_paf.engine.config import TrainConfig

__all__ = ['Logger', 'TensorBoardLogger', 'WandbLogger', 'make_loggers']


class Logger(Callback):
    """Logs the measured numbers of each row; after a resume also the last row, which a killed run may not have logged.

    A new logger starts in `on_start`, implements `write(epoch, numbers)` and ends in `on_end`.
    """

    def on_start(self, rows: Sequence[Row]) -> None:
        for row in rows[-1:]:
            self.on_epoch(row, shape={}, best=False)

    def on_epoch(self, row: Row, *, shape: Mapping[str, float], best: bool) -> None:
        numbers = {name: value for name, value in row.items() if value is not None}
        self.write(int(numbers.pop('epoch')), numbers)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of an epoch, counted from 0."""
        raise NotImplementedError


class TensorBoardLogger(Logger):
    """Writes TensorBoard's files into `tensorboard` in the folder of the run.

    Raises:
        ValueError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError('--log-tensorboard: TensorBoard is not installed; pip install tensorboard.') from None
        self._make_writer: Any = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def on_start(self, rows: Sequence[Row]) -> None:
        self._writer = self._make_writer(str(self._folder / 'tensorboard'))
        super().on_start(rows)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def on_end(self, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger(Logger):
    """Logs to Weights & Biases, where a resumed run continues as the same run.

    Args:
        folder: Folder of the run.
        settings: Settings to store there.
        project: Project; Weights & Biases chooses one if None.
        tags: Tags.

    Raises:
        ValueError: If wandb is not installed.
    """

    def __init__(
            self, folder: Path, settings: Mapping[str, Any], *, project: str | None = None, tags: Sequence[str] = (),
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError('--log-wandb: Weights & Biases is not installed; pip install wandb.') from None
        self._wandb: Any = wandb
        self._folder, self._settings, self._project, self._tags = folder, dict(settings), project, list(tags)
        self._run: Any = None

    def on_start(self, rows: Sequence[Row]) -> None:
        self._run = self._wandb.init(
            project=self._project, name=self._folder.name, id=self._id(), resume='allow', tags=self._tags,
            config=self._settings, dir=str(self._folder))
        super().on_start(rows)

    def _id(self) -> str:
        """The id of the folder: the same after a resume; folders with the same name have different ones."""
        file = self._folder / 'wandb' / 'id'
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as part:
                part.write(f'{self._folder.name[:100]}-{secrets.token_hex(4)}'.encode())
        return file.read_text()

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        self._run.log({'epoch': epoch, **numbers}, step=epoch)

    def on_end(self, error: BaseException | None) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(error is not None))


def make_loggers(config: TrainConfig, folder: Path) -> list[Callback]:
    """The loggers of the settings; ValueError if one is not installed."""
    loggers: list[Callback] = [TensorBoardLogger(folder)] if config.log_tensorboard else []
    if config.log_wandb:
        loggers.append(WandbLogger(folder, config.to_dict(), project=config.wandb_project, tags=config.wandb_tags))
    return loggers
