"""lmms-eval's own functions for POPE; a task file finds its functions beside it."""

from lmms_eval.tasks.pope.utils import (
    pope_aggregate_accuracy,
    pope_doc_to_text,
    pope_doc_to_visual,
    pope_process_results,
)

__all__ = ["pope_aggregate_accuracy", "pope_doc_to_text", "pope_doc_to_visual", "pope_process_results"]
