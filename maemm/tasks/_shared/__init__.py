"""What several verbs share: models and data opened, features, caches, tables of results, pages of runs."""
