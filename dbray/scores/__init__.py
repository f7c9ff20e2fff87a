"""What a fine-tuned model is worth: embedders, and the figures computed from embeddings. No Ray."""
