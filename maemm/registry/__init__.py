"""Plugins and their parts: manifests, discovery, and looking up a part by role and name. Does not import torch."""

from maemm.registry.core import CORE
from maemm.registry.discovery import (
    GROUP,
    HOME,
    VARIABLE,
    DiscoveredPlugin,
    add_path,
    all_plugins,
    clear_cache,
    with_plugins,
)
from maemm.registry.lookup import find, get, names, owner_of
from maemm.registry.make import describe_owner, make, missing_methods, part_of
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
    "all_plugins",
    "find",
    "clear_cache",
    "get",
    "make",
    "missing_methods",
    "names",
    "part_of",
    "owner_of",
    "describe_owner",
    "with_plugins",
]
