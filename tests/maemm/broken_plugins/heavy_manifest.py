"""A manifest that imports a slow package: ``manifest_is_light`` must catch it."""

import matplotlib  # noqa: F401
