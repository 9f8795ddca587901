"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "session-metrics-otel"
author = "the session-metrics-otel contributors"
copyright = author  # noqa: A001 - Sphinx's name
version = release = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]  # Pygments knows no colon in a PromQL name
myst_heading_anchors = 3

napoleon_use_ivar = True  # attributes that are properties too are described once

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature of instrument() is long enough without

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sourcelink = False
