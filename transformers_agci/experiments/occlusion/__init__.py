"""Occlusion maps: which places of an image the answer depends on."""
