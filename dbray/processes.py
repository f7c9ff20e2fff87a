"""How the processes of dbray share a machine's cores.

OpenMP's threads spin while they wait for each other. Beside other load that multiplies the time of
small models: two spinning threads took nine times as long as one. Waiting passively costs next to
nothing. Values that the user has set stay. Everything here has to come before torch is imported,
or before the process that is to inherit it is started.
"""

from __future__ import annotations

from collections.abc import MutableMapping


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Have idle threads sleep, here and in the processes started from here."""
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
