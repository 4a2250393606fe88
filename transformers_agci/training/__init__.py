"""LoRA fine-tuning with AGCI on: recipes, the trainer for people without LLaMA-Factory, merging, and their checks."""
