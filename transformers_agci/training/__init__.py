"""LoRA fine-tuning by LLaMA-Factory's recipes, on peft and transformers' Trainer.

recipe_keys  the keys of a recipe, typed      encoding  a conversation as token ids and labels
recipe       reading and checking a recipe    batches   images and rows as batches
checks       what can be wrong beforehand     prepare   the model, its adapter, its inputs
run          the training                     outputs   its folder: manifest, checkpoints to go on from
adapter      an adapter's files               merge     an adapter added to its checkpoint
provenance   what an adapter was trained on
"""
