"""A manifest that imports something slow: ``manifest_is_light`` must catch it."""

import matplotlib  # noqa: F401
