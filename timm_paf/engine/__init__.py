"""Training engine: a run from settings to a robustness report, as commands and as Python objects."""
from timm_paf.engine.callbacks import Callback
from timm_paf.engine.cli import RunFailed, RunStopped, run
from timm_paf.engine.commands import (
    dry_run,
    open_run,
    parse_train_config,
    parse_validate_config,
    train,
    validate,
)
from timm_paf.engine.ema import EMA
from timm_paf.engine.measurement import Measurement, measure
from timm_paf.engine.resume import RunFinished
from timm_paf.engine.step import TrainStep
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.trainer import Trainer
from timm_paf.engine.validate_config import ValidateConfig

__all__ = [
    'Callback', 'EMA', 'Measurement', 'RunFailed', 'RunFinished', 'RunStopped', 'TrainConfig', 'TrainStep', 'Trainer',
    'ValidateConfig', 'dry_run', 'measure', 'open_run', 'parse_train_config', 'parse_validate_config', 'run', 'train',
    'validate']
