"""The live page: one image in nine places, what a model answers in each, and what lambda does to it."""
