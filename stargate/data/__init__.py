"""Tasks, personas and golds: the packaged starter dataset and the loader that validates."""
