"""Serving: any published subject over HTTP, loaded when it is requested, on Ray Serve.

    HTTP -> ingress (http/) -> replicas (replica/) -> base + weights
                                                      cache: storage, disk, RAM, device

`build` is the import path of a Serve configuration; `launch` serves on one machine. Importing this
package loads neither torch nor Ray.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dbray.processes import stay_on_loopback

if TYPE_CHECKING:
    from ray import serve

__all__ = ["build", "launch"]


def build(args: dict[str, Any]) -> serve.Application:
    """Make the Ray Serve application; `args` are fields of `options.ServeOptions`."""
    from dbray.serving.app import build as build_app
    from dbray.serving.options import ServeOptions

    return build_app(ServeOptions.model_validate(args))


def launch(*args: Any, **options: Any) -> None:
    """Serve on one machine until stopped; see `dbray.serving.local.launch`."""
    stay_on_loopback(os.environ)
    from dbray.serving.local import launch as launch_here

    launch_here(*args, **options)
