"""Ray Data: the pool of sampling actors, class images, previews."""
