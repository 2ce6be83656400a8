"""Trackers of experiments that a run can tell its numbers to: TensorBoard and Weights & Biases, where installed."""
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm_paf._files import whole_file

__all__ = ['Trackers']


class Trackers:
    """The trackers asked for; used as a context. Without any, nothing happens.

    Args:
        folder: Of the run; TensorBoard's files go into `tensorboard` in it.
        settings: Of the run, plain values.
        log_tensorboard: Write TensorBoard's files.
        log_wandb: Log to Weights & Biases.
        wandb_project: Project there; its own default if None.
        wandb_tags: Tags there.

    Raises:
        ValueError: If a tracker is not installed; nothing has been written then.
    """

    def __init__(
            self,
            folder: Path,
            settings: Mapping[str, Any],
            *,
            log_tensorboard: bool = False,
            log_wandb: bool = False,
            wandb_project: str | None = None,
            wandb_tags: tuple[str, ...] = (),
    ) -> None:
        self.writer: Any = None
        self.wandb: Any = None
        self._folder, self._settings = folder, dict(settings)
        self._project, self._tags = wandb_project, wandb_tags
        if log_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError('--log-tensorboard: TensorBoard is not installed; pip install tensorboard.') from None
            self._make_writer = SummaryWriter
        if log_wandb:
            try:
                import wandb
            except ImportError:
                raise ValueError('--log-wandb: Weights & Biases is not installed; pip install wandb.') from None
            self._wandb_module = wandb
        self._wanted = log_tensorboard, log_wandb

    def __enter__(self) -> 'Trackers':
        tensorboard, wandb = self._wanted
        if tensorboard:
            self.writer = self._make_writer(str(self._folder / 'tensorboard'))
        if wandb:
            self.wandb = self._wandb_module.init(
                project=self._project, name=self._folder.name, id=self._wandb_id(), resume='allow',
                tags=list(self._tags), config=self._settings, dir=str(self._folder))
        return self

    def _wandb_id(self) -> str:
        """One run there for one folder here, also when it is interrupted and goes on; folders may have equal names."""
        file = self._folder / 'wandb' / 'id'
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as part:
                part.write(f'{self._folder.name[:100]}-{secrets.token_hex(4)}'.encode())
        return file.read_text()

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=int(exception[0] is not None))

    def log(self, epoch: int, numbers: Mapping[str, float | None]) -> None:
        """Tell the numbers of a finished epoch, counted from 0; None stands for what was not measured."""
        numbers = {name: value for name, value in numbers.items() if value is not None}
        if self.writer is not None:
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, epoch)
            self.writer.flush()
        if self.wandb is not None:
            self.wandb.log({'epoch': epoch, **numbers}, step=epoch)
