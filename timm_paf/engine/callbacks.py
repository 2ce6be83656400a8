"""Callbacks, to which a run reports its progress."""
from collections.abc import Mapping, Sequence

__all__ = ['Callback', 'Row']

Row = Mapping[str, float | None]
"""A row of summary.csv by column; None is a value that was not measured."""


class Callback:
    """Watches a run. Override the methods you need; each does nothing by default. Called in process 0 only."""

    def on_start(self, rows: Sequence[Row]) -> None:
        """Called before the first update, with the rows of the epochs that are finished already in a resumed run."""

    def on_update(self, epoch: int, step: int, metrics: Mapping[str, float], shape: Mapping[str, float]) -> None:
        """Called after every update.

        Args:
            epoch: Number of the epoch, from 0.
            step: Number of the update in the epoch, from 0.
            metrics: Means of the epoch so far: 'loss', 'robust' (accuracy under the training attack in %),
                'images_per_second', 'data_wait' (waiting for data in %). Empty except every `log_interval` updates:
                reading them makes the device wait.
            shape: Alpha and beta by name, at the same updates.
        """

    def on_epoch(self, row: Row, *, shape: Mapping[str, float], best: bool) -> None:
        """Called after every epoch, once its checkpoint is written; `best`: it is the best epoch so far."""

    def on_message(self, text: str) -> None:
        """Called with each line that the run has to say."""

    def on_end(self, error: BaseException | None) -> None:
        """Called when training ends, with the error that ended it."""
