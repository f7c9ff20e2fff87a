"""How one subject is trained: loss and draws, the loop, and the engines that take its steps."""
