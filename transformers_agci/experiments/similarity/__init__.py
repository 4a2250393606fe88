"""Similarity maps: how well the vision encoder understands an image in each of nine places."""
