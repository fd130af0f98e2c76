"""Training: read :mod:`.loop` and :mod:`.step` first. Pictures and the report page are a callback from outside."""
