"""Checkpoints made of others: `agci convert-llava` and `agci set-lambda`.

original.py reads what LLaVA's original config.json says, shards.py its weights, layout.py names every tensor on both
sides, plan.py decides where each goes, sentencepiece_file.py and processor_files.py make tokenizer and processor, and
convert.py puts it together. set_lambda.py changes lambda in place or in a second folder.
"""
