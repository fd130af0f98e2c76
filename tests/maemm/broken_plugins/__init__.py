"""Plugins that break one rule each, so that no check of :mod:`maemm.testing` is idle. Importing this loads no torch."""
