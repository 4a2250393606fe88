"""Data sets: grids and composites, reading rows and images, building, checking and fetching. Loads no torch."""
