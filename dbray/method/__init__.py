"""The mathematics: losses, the training loop, engines, and sampling. Knows no Ray."""
