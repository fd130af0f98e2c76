"""One folder for each verb of the command line: ``cli.py`` parses its arguments, ``run.py`` is its Python function.

Importing a ``cli`` module does not import torch: what a verb needs is imported when it runs.
"""

VERBS = (  # in the order in which a project uses them
    "demo",
    "config",
    "plugins",
    "show",
    "data",
    "estimate",
    "pretrain",
    "reconstruct",
    "embed",
    "knn",
    "probe",
    "finetune",
    "evaluate",
    "retrieve",
    "score",
    "diagnose",
    "modalities",
    "parity",
    "ablate",
    "runs",
    "convert",
    "export",
)
