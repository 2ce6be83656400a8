"""Writing a file whole or not at all."""

from timm_paf._files import whole_file

__all__ = ['whole_file']
