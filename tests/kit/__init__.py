"""What tests share: small worlds, a registry to serve, a fake of S3."""
