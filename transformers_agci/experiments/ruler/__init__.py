"""A position bias of known size on the embedded model, and what the methods do to it."""
