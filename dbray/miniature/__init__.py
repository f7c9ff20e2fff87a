"""The miniature: a small drawn world, and a base model trained on it, in the package."""
