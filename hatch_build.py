"""Puts configs/ into a wheel. An editable install finds it in the clone, and pip would leave its folder behind."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHERE = "transformers_agci/configs"  # training/recipe.py looks there where the current folder has no such recipe


class Recipes(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["configs"] = WHERE
