"""Synthetic images: sample, label, filter, write."""
from timm_paf.synthesis.config import SyntheticConfig
from timm_paf.synthesis.diffusion import Diffusion, SynthesisFailed, fit_diffusion, import_diffusers, load_diffusion
from timm_paf.synthesis.parts import Labeller, PartMaker, check_folder, load_labeller

__all__ = [
    'Diffusion', 'Labeller', 'PartMaker', 'SynthesisFailed', 'SyntheticConfig', 'check_folder', 'fit_diffusion',
    'import_diffusers', 'load_diffusion', 'load_labeller',
]
