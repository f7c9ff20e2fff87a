"""Who may request what, how large, and how many at once: what surrounds every route."""
