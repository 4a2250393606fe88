"""The position probe in lmms-eval: the plugin that LMMS_EVAL_PLUGINS names, with the task agci_position_probe.

LMMS_EVAL_PLUGINS=transformers_agci.integrations.lmms_eval turns it on. The rows come from AGCI_PROBE_FILE,
AGCI_PROBE_IMAGES and AGCI_PROBE_NEGATIVES; without them the embedded atlas makes AGCI_PROBE_ITEMS items (default 100).
"""
