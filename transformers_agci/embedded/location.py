"""Where the shipped checkpoint lies."""

from pathlib import Path

EMBEDDED = "embedded"  # what `model_path` calls it
SNAPSHOT = Path(__file__).parent / "snapshot"
MODEL_TYPE = "qwen2_5_vl"  # the family that it belongs to
TEMPLATE = "qwen2_vl"  # the prompt format that it is fine-tuned with


def embedded_model_path() -> Path:
    """The folder of the embedded model's checkpoint, for AutoProcessor and AutoModelForImageTextToText.

    >>> (embedded_model_path() / "config.json").is_file()
    True
    """
    return SNAPSHOT
