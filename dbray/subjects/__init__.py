"""Folders, manifests and lists, read into checked subjects; their images."""
