"""The options that several commands share, each declared once, a file for each concept.

`add_*_options` declares a group, the function named after it reads the group back as the engine's own dataclass.
"""
