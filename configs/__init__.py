"""The recipes, packaged as ``maemm_configs``: one folder per plugin, one YAML file per recipe."""
