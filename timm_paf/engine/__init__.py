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
from timm_paf.engine.sweep import Cell, Sweep, SweepConfig, read_sweep
from timm_paf.engine.sweep_page import sweep_page
from timm_paf.engine.sweep_run import cell_state, check_sweep, list_cells, run_cell, run_sweep, submit_sweep
from timm_paf.engine.sweep_table import sweep_rows, write_table
from timm_paf.engine.train_config import TrainConfig
from timm_paf.engine.trainer import Trainer
from timm_paf.engine.validate_config import ValidateConfig

__all__ = [
    'Callback', 'Cell', 'EMA', 'Measurement', 'RunFailed', 'RunFinished', 'RunStopped', 'Sweep', 'SweepConfig',
    'TrainConfig', 'TrainStep', 'Trainer', 'ValidateConfig', 'cell_state', 'check_sweep', 'dry_run', 'list_cells',
    'measure', 'open_run', 'parse_train_config', 'parse_validate_config', 'read_sweep', 'run', 'run_cell', 'run_sweep',
    'submit_sweep', 'sweep_page', 'sweep_rows', 'train', 'validate', 'write_table']
