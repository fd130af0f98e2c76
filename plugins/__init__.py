"""The bundled plugins, imported as ``maemm_plugins``, and the folders that ``MAEMM_PLUGIN_PATH`` names.

An entry of the variable is a plugin (a folder with an ``__init__.py``) or a folder of plugins. The variable,
not ``sys.path``, carries them to worker processes, however those are started.
"""

import os

if __name__ != "maemm_plugins":
    # A second copy under another name would have its own classes, and isinstance would fail between the two.
    raise ImportError(f"import 'maemm_plugins', not {__name__!r}; run: pip install -e .")


def folders(variable: str) -> list[str]:
    """Folders to look for packages in, for the entries of ``MAEMM_PLUGIN_PATH``."""
    entries = [os.path.abspath(entry) for entry in variable.split(os.pathsep) if entry]
    return [os.path.dirname(path) if os.path.isfile(os.path.join(path, "__init__.py")) else path for path in entries]


for _folder in folders(os.environ.get("MAEMM_PLUGIN_PATH", "")):
    if _folder not in __path__:
        __path__.append(_folder)
