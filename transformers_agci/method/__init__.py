"""The method on a live model: the formula and its controls, the hooks, lambda, the config key, the self-check."""
