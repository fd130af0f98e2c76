"""One folder for each verb of the command line: ``cli.py`` reads its words, ``run.py`` is its Python function.

Importing a ``cli`` module loads no torch: what a verb needs is imported when it runs.
"""

VERBS = (  # in the order of a person's work
    "demo",
    "config",
    "plugins",
    "show",
    "data",
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
    "convert",
    "export",
)
