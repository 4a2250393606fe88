"""lmms-eval asks every plugin for models of its own, by name; this one brings a task only."""

AVAILABLE_MODELS: dict[str, str] = {}
