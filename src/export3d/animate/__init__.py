"""Making images: a portrait, moved by a motion, written to a file."""
