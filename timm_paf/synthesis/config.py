"""Settings of make_synthetic.py."""
import dataclasses
from pathlib import Path

from timm_paf.data.synthetic import DEFAULT_COMPONENTS, DEFAULT_MIXTURES
from timm_paf.engine.cli import setting
from timm_paf.engine.config import at_least
from timm_paf.engine.settings import DATASETS
from timm_paf.synthesis.diffusion import SAMPLERS
from timm_paf.synthesis.training import TIMESTEPS

__all__ = ['GENERATOR', 'SyntheticConfig']

GENERATOR = 'generator'  # the folder in --output that --train saves its model in


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to make and from what."""
    dataset: str = setting('digits', 'data set to learn from', choices=DATASETS)
    method: str = setting(
        'mixture', 'mixture: a Gaussian mixture of each class; diffusion: a diffusion model',
        choices=('mixture', 'diffusion'))
    num_images: int = setting(10_000, 'how many images, all classes together')
    output: str = setting('', 'archive NAME.npz (mixture) or folder (diffusion) to write (required)')
    seed: int = setting(0, 'any integer')
    components: int = setting(DEFAULT_COMPONENTS, 'mixture: principal components a class')
    mixtures: int = setting(DEFAULT_MIXTURES, 'mixture: Gaussians a class')
    overwrite: bool = setting(False, 'mixture: replace the archive if it is there')

    generator: str | None = setting(None, 'diffusion: folder of a diffusers model on pixels (UNet2DModel)')
    train: bool = setting(False, f'diffusion: fit a small model on the training split first, into OUTPUT/{GENERATOR}')
    train_steps: int = setting(2000, 'updates of --train')
    train_batch_size: int = setting(128, 'images an update of --train')
    train_lr: float = setting(2e-3, 'highest learning rate of --train')
    train_width: int = setting(16, 'channels of the first level of --train, a multiple of 8')
    conditional: bool = setting(True, 'whether --train fits a class-conditional model')
    sampler: str | None = setting(
        None, "ddpm or ddim instead of the model's own sampler", choices=(None, *SAMPLERS))
    sampling_steps: int | None = setting(None, 'unset: as trained for ddpm, 50 for others')
    batch_size: int = setting(256, 'images drawn at a time')
    part_size: int = setting(50_000, 'images a part')
    device: str | None = setting(None, 'cpu, cuda, …; unset takes a GPU if there is one')

    labeller: str | None = setting(None, "name in timm's registry; unset: as the checkpoint says")
    labeller_checkpoint: str | None = setting(None, 'weights of the model that gives or checks the labels')
    min_confidence: float = setting(0., 'softmax probability of the label below which an image is dropped')
    balance: bool = setting(True, 'equally many images of each class')
    min_distance: float = setting(
        0.02, 'drop images nearer than this to a training image: root mean square of differences of pixels in [0,1]')
    max_draws: int = setting(20, 'images drawn for each one kept before giving up')

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError('--output is missing; give the archive to write, such as digits_synth.npz.')
        if not Path(self.output).parent.is_dir():
            raise ValueError(
                f'--output = {self.output}: there is no folder {Path(self.output).parent}; make it first.')
        self._check_mixture() if self.method == 'mixture' else self._check_diffusion()

    def _check_mixture(self) -> None:
        path = Path(self.output)
        if self.train or self.generator:
            raise ValueError('--generator and --train belong to --method diffusion; add that, or leave them out.')
        if self.labeller or self.labeller_checkpoint or self.min_confidence > 0:
            raise ValueError('a labeller belongs to --method diffusion; the mixture knows the class of what it draws.')
        if path.suffix != '.npz':
            raise ValueError(f'--output = {path}: expected a name that ends in .npz.')
        if path.is_dir():
            raise ValueError(f'--output = {path}: that is a folder; give the name of a file.')
        if path.exists() and not self.overwrite:
            raise ValueError(f'{path} is already there; give another --output, or --overwrite to replace it.')

    def _check_diffusion(self) -> None:
        if Path(self.output).suffix == '.npz' or Path(self.output).is_file():
            raise ValueError(f'--output = {self.output}: --method diffusion writes parts; give the name of a folder.')
        if self.overwrite:
            raise ValueError('--overwrite belongs to --method mixture; a folder is finished, not replaced.')
        if self.train == bool(self.generator):
            raise ValueError('--method diffusion needs one of --generator FOLDER and --train.')
        for name in ('num_images', 'train_steps', 'train_batch_size', 'batch_size', 'part_size', 'max_draws'):
            at_least(self, name, 1)
        if self.train_width < 8 or self.train_width % 8:
            raise ValueError(f'--train-width = {self.train_width}: expected a multiple of 8.')
        if self.sampling_steps is not None:
            at_least(self, 'sampling_steps', 1)
            if self.train and self.sampling_steps > TIMESTEPS:
                raise ValueError(f'--sampling-steps = {self.sampling_steps}: expected at most {TIMESTEPS}.')
        for name in ('min_confidence', 'min_distance'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'--{name.replace("_", "-")} = {getattr(self, name)}: expected a number from 0 to 1.')
        if not 0 < self.train_lr < float('inf'):
            raise ValueError(f'--train-lr = {self.train_lr}: expected a number above 0.')
        if self.train and not self.conditional and self.labeller_checkpoint is None:
            raise ValueError('--no-conditional needs --labeller-checkpoint, a model to label the images with.')
        if self.labeller_checkpoint is None and (self.labeller or self.min_confidence > 0):
            raise ValueError('--labeller and --min-confidence need --labeller-checkpoint, the weights to label with.')
