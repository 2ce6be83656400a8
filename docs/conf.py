"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build/html`."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import explorers
from figures import draw_figures, write_results

import timm_paf

project = 'timm_paf'
author = 'The timm_paf developers'
copyright = '2026, the timm_paf developers'
version = release = timm_paf.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx-mathjax-offline']
exclude_patterns = ['_build', 'tables']
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 3
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_class_signature = 'separated'
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = 'furo'
html_static_path = ['_static']
html_favicon = '_static/icon.svg'
html_title = f'timm_paf {release}'
html_copy_source = False
html_show_sphinx = False


def escape_bars(app, what, name, obj, options, lines):
    """|alpha| in a docstring is an absolute value, not a reference."""
    lines[:] = [re.sub(r'(``?[^`]*``?)|\|', lambda m: m[1] or r'\|', line) for line in lines]


def setup(app):
    """Connect what is above to Sphinx."""
    explorers.setup(app)
    app.connect('autodoc-process-docstring', escape_bars, priority=900)
    app.connect('builder-inited', lambda app: draw_figures(Path(app.srcdir) / '_build' / 'figures'))
    app.connect('builder-inited', lambda app: write_results(Path(app.srcdir) / '_build' / 'results'))
