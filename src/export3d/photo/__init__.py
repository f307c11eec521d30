"""The whole photo: sizes and frames, the person's matte, the background, and frames at the photo's own resolution."""
