"""The studio: a local web application that turns, edits and animates a portrait."""
