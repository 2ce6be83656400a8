"""Images for evaluation: float32 in [0, 1] batch by batch, from a source that holds bytes or files."""

from typing import Any, cast

import torch
from torch import Tensor

from timm_paf.data.arrays import ImageSource, LabelledImages, image_fault, to_unit_range
from timm_paf.data.classes import all_labels, class_names


class EvaluationImages:
    """A source as evaluation needs it; no float copy of it is made.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1]: a tensor if the source holds one, else `RowsOnDemand`.
        labels: (N,) int64 class numbers.
        num_classes: As the source's, as are the shape, the name and the names of the classes.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.labels = source, all_labels(source)
        self.name, self.num_classes, self.image_shape = source.name, source.num_classes, source.image_shape
        self.class_names = class_names(source)
        self.images = cast(Tensor, RowsOnDemand(source))
        if isinstance(source, LabelledImages) and source.images.dtype == torch.float32:
            self.images = source.images

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As the source's, with class numbers as labels."""
        return self.source.take(indices)[0], self.labels[indices.cpu()]


class RowsOnDemand:
    """The images of a source in the place of a tensor (N, C, H, W) float32 in [0, 1].

    Indexing selects rows and reads nothing. `to` and `float` read the selected rows.
    """

    dtype, device = torch.float32, torch.device('cpu')

    def __init__(self, source: ImageSource, rows: Tensor | None = None) -> None:
        self.source, self.rows = source, torch.arange(len(source)) if rows is None else rows

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), *self.source.image_shape))

    def __len__(self) -> int:
        """Number of selected images."""
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Any:
        """The images at these rows: a slice, indices (M,) int64 or a mask (N,) bool; one image is read."""
        if isinstance(rows, int):
            return RowsOnDemand(self.source, self.rows[rows][None]).float()[0]
        return RowsOnDemand(self.source, self.rows[rows.cpu() if isinstance(rows, Tensor) else rows])

    def float(self) -> Tensor:
        """The selected images, read from the source, (N, C, H, W) float32 in [0, 1]."""
        images = self.source.take(self.rows)[0]
        if len(images) and (fault := image_fault(images)):  # one's own data sets are checked here for the first time
            raise ValueError(f'{self.source.name}: got {fault}')
        return to_unit_range(images).contiguous()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Tensor.to`."""
        return self.float().to(*args, **kwargs)

    def detach(self) -> 'RowsOnDemand':
        """Itself."""
        return self

    def dim(self) -> int:
        """4."""
        return 4

    def is_floating_point(self) -> bool:
        """True."""
        return True

    def min(self) -> Tensor:
        """0: `float` checks that no pixel is below it."""
        return torch.zeros(())

    def max(self) -> Tensor:
        """1: `float` checks that no pixel is above it."""
        return torch.ones(())
