"""Which replica gets a request: the one that a hash of the model's id ranks first.

Rendezvous hashing (Thaler and Ravishankar 1998): every ingress computes the same ranks, so one
replica loads a subject, and when a replica ends only its own subjects move. If a replica is full,
the next in rank gets the request. Requests without a model id go to any replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


def rank(model_id: str, replica_ids: Sequence[str]) -> list[int]:
    """Positions of the replicas, the preferred one first."""
    scores = [sha256(f"{model_id} {replica_id}".encode()).digest() for replica_id in replica_ids]
    return sorted(range(len(scores)), key=scores.__getitem__)


class RendezvousRouter(RequestRouter):
    """Ranks replicas by a hash of the multiplexed model id and their own."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are to be tried."""
        model_id = pending_request.metadata.multiplexed_model_id if pending_request else ""
        if not model_id:
            return [list(candidate_replicas)]
        order = rank(model_id, [replica.replica_id.unique_id for replica in candidate_replicas])
        return [[candidate_replicas[position]] for position in order]
