"""How the miniature cascade was made: a base of 32 pixels, and its super-resolution to 64.

Owns its training data, tokenizer, networks, losses and export. The weights are in `../cascade`.
"""
