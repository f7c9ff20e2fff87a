"""What draws: a replica with its queue, cache of weights and painter."""
