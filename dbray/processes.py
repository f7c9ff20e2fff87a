"""How the processes of dbray share a machine's cores.

OpenMP's threads spin while they wait for each other. Under other load this multiplies the time of
small models: two spinning threads took nine times as long as one. Passive waiting costs almost
nothing. Values that the user has set are kept. Call this before torch is imported, or before the
process that inherits the environment is started.
"""

from __future__ import annotations

from collections.abc import MutableMapping


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Make idle threads sleep, in this process and in those that it starts."""
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
