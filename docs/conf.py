"""How Sphinx builds the pages: `make docs`."""

from importlib.metadata import version as installed_version

# All job types are mapped before autodoc looks at the first one: what it then sets on a mapped class
# would let SQLAlchemy take the next subclass for a table of its own.
import jobrunner.testing.conformance
import jobrunner.worker  # noqa: F401

project = "jobrunner"
author = "The jobrunner authors"
copyright = "The jobrunner authors"
release = installed_version("jobrunner")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jobrunner {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
