"""The lambda an adapter was trained with beside the one its merged checkpoint will carry."""

from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.inference.checkpoint_files import read_config
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text
from transformers_agci.training.checks import Checkpoint
from transformers_agci.training.outputs import read_manifest


def lambda_warning(checkpoint: Checkpoint, adapter: Path, base: str | None) -> list[str]:
    """What is lost when the two lambdas differ, as sentences; nothing where they agree."""
    trained, source = trained_lambda(checkpoint, adapter, base)
    here = f"{checkpoint.folder}/config.json"
    remedy = f"agci set-lambda {checkpoint.folder} {lambda_text(trained) if trained else 'LAMBDA'}"
    if checkpoint.lam is None and trained is None:
        return [
            f"{here} has no {LAMBDA_KEY}, and nothing says with which lambda the adapter was trained: if it was "
            f"trained with AGCI, the merged checkpoint runs without it ({remedy} before merging keeps it)."
        ]
    if checkpoint.lam is None and trained:
        return [
            f"{here} has no {LAMBDA_KEY}, but the adapter was trained with lambda {lambda_text(trained)} "
            f"({source}): the merged checkpoint would run without AGCI ({remedy} before merging keeps it)."
        ]
    if trained is not None and checkpoint.lam != trained and (checkpoint.lam or trained):
        return [
            f"{here} says lambda {lambda_text(checkpoint.lam or 0.0)}, but the adapter was trained with "
            f"{lambda_text(trained)} ({source}); the merged checkpoint carries the former."
        ]
    return []


def trained_lambda(checkpoint: Checkpoint, adapter: Path, base: str | None) -> tuple[float | None, str]:
    """The lambda of the training, and who says so; (None, "") where nothing does.

    Our own manifest says it. For an adapter of LLaMA-Factory's the base model that it names is asked, if that is
    another folder than the one it is merged into.
    """
    manifest = read_manifest(adapter)
    if manifest is not None:
        return float(manifest["settings"]["lambda"]), "its training.manifest.json"
    if base and Path(base).is_dir() and Path(base).resolve() != checkpoint.folder.resolve():
        try:
            return float(read_config(Path(base)).get(LAMBDA_KEY, 0.0)), f"{base}/config.json"
        except (InputError, TypeError, ValueError):
            return None, ""
    return None, ""
