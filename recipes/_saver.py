"""Checkpoints of a run: timm's CheckpointSaver, in files that hold tensors and plain values only."""
from collections.abc import Mapping
from typing import Any

import torch
from timm.utils import CheckpointSaver

__all__ = ['RunSaver']


class RunSaver(CheckpointSaver):
    """CheckpointSaver that writes the settings as a dictionary, so that `torch.load(weights_only=True)` reads the file.

    Args:
        settings: The run's settings; stored under 'args', and their model under 'arch'.
        **kwargs: As CheckpointSaver.
    """

    def __init__(self, *, settings: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = dict(settings)

    def _save(self, save_path, epoch, metric=None) -> None:
        state = {
            'epoch': epoch,
            'arch': self.settings['model'],
            'args': self.settings,
            'optimizer': self.optimizer.state_dict(),
            'version': 2,
            **self.task.get_checkpoint_state(unwrap_fn=self.unwrap_fn),
            **self.task.get_checkpoint_state(ema=True, unwrap_fn=self.unwrap_fn),
        }
        if metric is not None:
            state['metric'] = metric
        torch.save(state, save_path)
