"""Making pictures: a portrait, moved by a motion, written to a file."""
