"""Data sets: grids and composites, reading rows and pictures, building, checking and fetching. Loads no torch."""
