"""Settings of Sphinx."""
from lcq_mmdet import __version__

project = 'lcq_mmdet'
author = 'the authors of lcq_mmdet'
version = release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']
myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
copybutton_prompt_text = '$ '

html_theme = 'furo'
html_title = f'lcq_mmdet {version}'
html_show_copyright = False
html_static_path = ['_static']
html_css_files = ['tables.css']

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
napoleon_use_ivar = True
# Classes of other projects are named in signatures, and not linked.
nitpicky = False
suppress_warnings = ['misc.highlighting_failure']

# Publishers' pages refuse what is not a browser.
linkcheck_ignore = [r'https://openaccess\.thecvf\.com/.*']
linkcheck_timeout = 20
