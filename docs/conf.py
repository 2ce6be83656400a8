"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build/html`."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import explorers
from command_pages import write_commands
from configuration_pages import write_configurations
from figures import draw_figures, write_results
from reference_pages import escaped, write_reference
from sphinx.util import logging

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
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # an overridden method without a docstring is not listed
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
suppress_warnings = ['ref.python']  # attributes of one name in several classes
toc_object_entries_show_parents = 'hide'
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = 'furo'
html_title = f'timm_paf {release}'
html_copy_source = False
html_show_sphinx = False
html_static_path = ['_static']
html_css_files = ['reference.css']
html_favicon = '_static/favicon.svg'
html_logo = '_static/logo.svg'

LOADED = re.compile(  # what a browser loads by itself, if it is on another machine
    r'<(?:link|script|img|iframe|source|audio|video|embed)\b[^>]*?\b(?:src|href)="(?:https?:)?//[^"]*"'
    r'|(?:\burl\(|@import)\s*[\'"]?(?:https?:)?//[^\s)]*')
HOMES: dict[str, str] = {}  # where a class or function of the package is described


def write_pages(app):
    """Make what is made from the package: figures, reference."""
    source = Path(app.srcdir)
    draw_figures(source / '_build' / 'figures')
    write_results(source / 'results', source / '_build' / 'results')
    write_commands(source / 'command-line')
    write_configurations(source / '_build' / 'configurations.md')
    HOMES.update(write_reference(source / 'reference'))


def escape_docstring(app, what, name, obj, options, lines):
    """|alpha| in a docstring is an absolute value, not a reference; a field without a text gets none."""
    lines[:] = [escaped(line) for line in lines if not line.startswith('Alias for field number')]


def shorten_settings(app, what, name, obj, options, signature, annotation):
    """A class of settings takes the flags of a command, which have pages of their own; others keep their arguments."""
    if what == 'class' and issubclass(obj, timm_paf.engine.fields.Settings):
        return '(**settings)', None
    return signature and signature.replace('<factory>', '...'), annotation  # <factory> is no Python, and is not parsed


def link_to_home(app, env, node, contnode):
    """A type in a signature has the name of its code; link to where it is described."""
    home = HOMES.get(node.get('reftarget', ''))
    if home is None or node.get('refdomain') != 'py':
        return None
    domain = env.get_domain('py')
    return domain.resolve_xref(env, node['refdoc'], app.builder, 'obj', home, node, contnode)


def check_resources(app, exception):
    """Warn of everything that a page loads from another machine."""
    if exception is None and app.builder.format == 'html':
        for path in sorted(Path(app.outdir).rglob('*')):
            for found in LOADED.findall(path.read_text(encoding='utf-8')) if path.suffix in ('.html', '.css') else ():
                logging.getLogger(__name__).warning('%s loads from the network: %s', path.name, found)


def setup(app):
    """Connect what is above to Sphinx."""
    explorers.setup(app)
    app.connect('builder-inited', write_pages)
    app.connect('autodoc-process-docstring', escape_docstring, priority=900)
    app.connect('autodoc-process-signature', shorten_settings)
    app.connect('missing-reference', link_to_home)
    app.connect('build-finished', check_resources)
