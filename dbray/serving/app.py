"""The Ray Serve application: its deployments and their resources."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from dbray import bases
from dbray.errors import SpecError
from dbray.processes import worker_environment
from dbray.records.models import Registry
from dbray.serving.http.ingress import Ingress
from dbray.serving.http.predictions import Predictions
from dbray.serving.options import ServeOptions
from dbray.serving.router import RendezvousRouter
from dbray.storage.store import Store

# Serve counts requests that are being routed as queued, so a burst has to fit. The limits that
# callers meet are those of the ingress and the replicas, which know how long requests take.
_BURST = 10_000
_BUSY = BackpressureConfig(status_code=503, retry_after_s=2)


def build(options: ServeOptions) -> serve.Application:
    """Make the application that serves a registry. Raises as `with_base`."""
    return application(with_base(options))


def application(options: ServeOptions) -> serve.Application:
    """Make the application, with a base that `with_base` has checked."""
    from dbray.serving.replica.replica import Replica  # imports torch, unlike the ingress

    deployment: Any = serve.deployment  # its types only know the decorator without arguments
    router: Any = RendezvousRouter
    model = deployment(
        Replica,
        name="Model",
        ray_actor_options=_resources(options),
        request_router_config=RequestRouterConfig(request_router_class=router),
        # More than a replica queues: the replica itself refuses, per tenant.
        max_ongoing_requests=8 * options.max_queued_images,
        max_queued_requests=_BURST,
        backpressure_config=_BUSY,
        graceful_shutdown_timeout_s=options.drain_seconds,
        health_check_period_s=5,
        health_check_timeout_s=30,
        **_scale(options),
    ).bind(options)
    predictions = deployment(
        Predictions,
        name="Predictions",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_BURST,
        graceful_shutdown_timeout_s=options.drain_seconds,
    ).bind(model)
    return deployment(
        Ingress,
        name="Ingress",
        num_replicas=options.num_ingress,
        ray_actor_options={"num_cpus": 0},
        # Unfinished bodies count here, and must not block health checks.
        max_ongoing_requests=_BURST,
        max_queued_requests=_BURST,
        backpressure_config=_BUSY,
        graceful_shutdown_timeout_s=options.drain_seconds,
    ).bind(options, model, predictions)


def with_base(options: ServeOptions) -> ServeOptions:
    """Check the base; if none is given, take that of the registry's first model.

    Raises:
        SpecError: no base is given, and the registry has no model.
        BaseError: the base does not exist or is not usable.
    """
    if options.base is None:
        record = next(iter(Registry(Store(options.registry)).list()), None)
        if record is None:
            raise SpecError.of(
                options.registry,
                "has no model to take the base from",
                "publish a model, or give a base",
            )
        name, revision = record.served_by
        options = options.model_copy(update={"base": name, "base_revision": revision})
        if (stage := record.super_resolution) is not None:
            options = options.model_copy(update={"super_resolution": stage.as_it_is})
    assert options.base is not None
    bases.with_stage(bases.resolve(options.base, options.base_revision), options.stage)
    return options


def _resources(options: ServeOptions) -> dict[str, Any]:
    num_gpus = ray.cluster_resources().get("GPU", 0) if options.device == "auto" else 0
    on_gpu = options.device == "cuda" or num_gpus >= 1
    # torch reads this as it is imported, before the number of threads can be set.
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    environment = {"env_vars": threads | worker_environment()}
    if on_gpu:
        return {"num_gpus": 1, "num_cpus": 1, "runtime_env": environment}
    return {"num_cpus": options.threads, "runtime_env": environment}


def _scale(options: ServeOptions) -> dict[str, Any]:
    if options.min_replicas is None:
        return {"num_replicas": options.num_replicas}
    scaling = AutoscalingConfig(
        min_replicas=options.min_replicas,
        max_replicas=max(options.max_replicas, options.min_replicas, 1),
        target_ongoing_requests=2 * options.batch_images,
        upscale_delay_s=5,
        downscale_delay_s=300,
    )
    return {"autoscaling_config": scaling}
