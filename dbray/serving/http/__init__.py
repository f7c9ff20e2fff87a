"""The HTTP ingress: wire, tenants, catalogue, and the playground."""
