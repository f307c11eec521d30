"""Animating a portrait by a motion, and writing the result to a file."""
