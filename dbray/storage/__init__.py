"""What is at rest, at any URI: bytes, atomic commits, digests."""
