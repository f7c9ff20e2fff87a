"""The methods of fine-tuning, the layers that they add, and the files that they publish."""
