"""What surrounds every route: keys, tenants, and the limits of size, time and number."""
