"""Counters, gauges and histograms of a job, for the Ray dashboard and Prometheus.

Owns the names. No metric has a label per subject: 100,000 subjects would overload the server.
"""

from __future__ import annotations

from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


@cache
def subjects() -> Counter:
    """Subjects that ended, by status: published or failed."""
    return Counter("dbray_subjects", "Subjects that ended, by status.", tag_keys=("status",))


@cache
def train_steps() -> Counter:
    """Optimiser steps taken."""
    return Counter("dbray_train_steps", "Optimiser steps taken.")


@cache
def prior_images() -> Counter:
    """Class images sampled."""
    return Counter("dbray_prior_images", "Class images sampled.")


@cache
def phase_seconds() -> Histogram:
    """Seconds that one subject spent in a phase: lease, encode, reset, train, publish, preview."""
    return Histogram(
        "dbray_phase_seconds",
        "Seconds of one subject in a phase.",
        boundaries=_SECONDS,
        tag_keys=("phase",),
    )


@cache
def pending_subjects() -> Gauge:
    """Subjects of the running job that no lane has leased yet."""
    return Gauge("dbray_pending_subjects", "Subjects that wait for a lane.")


@cache
def lanes() -> Gauge:
    """Running lanes."""
    return Gauge("dbray_lanes", "Lanes at work.")
