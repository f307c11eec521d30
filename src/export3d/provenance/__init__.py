"""Marks in generated images and videos: the invisible mark, the visible label, signed and plain metadata.

`writing` is the only place in the package that encodes generated images.
"""
