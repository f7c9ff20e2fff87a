"""Scores of fine-tuned models: embedders, and figures computed from embeddings. No Ray."""
