"""Storage at any URI: bytes, atomic commits, digests."""
