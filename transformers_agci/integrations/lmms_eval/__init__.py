"""The position probe in lmms-eval: the task agci_position_probe.

    lmms_eval --tasks agci_position_probe --include_path <this folder>/tasks --model ... --model_args ...

LMMS_EVAL_PLUGINS=transformers_agci.integrations.lmms_eval is the other way to name this folder, for versions that look
at it before they list the tasks (0.7.3 does not). Models that lmms-eval calls simple take agci_position_probe_simple.
The rows come from AGCI_PROBE_FILE, AGCI_PROBE_IMAGES and AGCI_PROBE_NEGATIVES; without them the embedded atlas makes
AGCI_PROBE_ITEMS items (default 100).
"""
