"""AGCI, its controls and rivals on the same items: asked, chosen on development items, reported on the others."""
