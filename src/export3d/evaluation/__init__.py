"""Scores of weights and of saved images: `measures` of images, `protocols` that choose what is compared, `reports` of
both, and the `appearance` that expressions carry."""
