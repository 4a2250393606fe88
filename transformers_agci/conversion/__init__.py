"""The original LLaVA checkpoints in transformers' layout: `agci convert-llava`.

original.py reads what the original config.json says, shards.py the weights, layout.py names every tensor on both
sides, sentencepiece_file.py and processor_files.py make tokenizer and processor, convert.py puts it together.
"""
