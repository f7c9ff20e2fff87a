"""Reading of folders, manifests and lists into checked subjects; their images."""
