"""Synthetic images: sample, label, filter, write."""
from timm_paf.synthesis.config import SyntheticConfig
from timm_paf.synthesis.diffusion import Diffusion, SynthesisFailed, import_diffusers, load_diffusion
from timm_paf.synthesis.folder import PartsFolder
from timm_paf.synthesis.parts import Labeller, PartMaker, load_labeller
from timm_paf.synthesis.training import fit_diffusion, read_training_record

__all__ = [
    'Diffusion', 'Labeller', 'PartMaker', 'PartsFolder', 'SynthesisFailed', 'SyntheticConfig', 'fit_diffusion',
    'import_diffusers', 'load_diffusion', 'load_labeller', 'read_training_record',
]
