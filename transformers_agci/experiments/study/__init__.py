"""The fine-tuning study: the embedded model tuned with AGCI off and on, over several seeds, then probed."""
