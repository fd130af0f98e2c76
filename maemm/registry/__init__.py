"""Plugins and their parts: manifests, discovery, and looking up a part by role and name. Does not import torch."""

from maemm.registry.core import CORE
from maemm.registry.discovery import GROUP, HOME, VARIABLE, DiscoveredPlugin, add_path, all, forget, with_plugins
from maemm.registry.lookup import find, get, names, where
from maemm.registry.make import make, missing_methods, part_of, who
from maemm.registry.manifest import PLURAL, ROLES, SINGULAR, Plugin

__all__ = [
    "CORE",
    "GROUP",
    "HOME",
    "PLURAL",
    "ROLES",
    "SINGULAR",
    "VARIABLE",
    "DiscoveredPlugin",
    "Plugin",
    "add_path",
    "all",
    "find",
    "forget",
    "get",
    "make",
    "missing_methods",
    "names",
    "part_of",
    "where",
    "who",
    "with_plugins",
]
