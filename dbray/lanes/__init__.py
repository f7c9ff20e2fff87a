"""The only Ray Train code: the queue of leases, and the lanes that train from it."""
