"""Information flow: what the text after the image attends to."""
