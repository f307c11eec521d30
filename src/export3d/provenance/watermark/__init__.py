"""The invisible mark: a 32-bit payload in the luminance of frames, and its detector. NumPy and Pillow only."""
