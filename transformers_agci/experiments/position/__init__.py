"""The position probe: is there a sub-image that matches the caption, with the target in each cell?"""
