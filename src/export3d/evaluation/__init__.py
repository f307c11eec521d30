"""Scores: how near images are to the truth (`metrics`), which images are compared (`protocol`), and the tables made of
it (`report`, `figures`)."""
