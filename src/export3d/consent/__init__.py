"""Whose face may be animated: a register of people who agreed, and the check of a portrait against it."""
