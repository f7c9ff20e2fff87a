"""How long are connections refused after the HTTP proxy of Ray Serve was killed?

    python benchmarks/proxy.py [--base miniature] [--rounds 5] [--keep]

A real server; SIGKILL of its proxy, then /healthz until it answers again. Measure on an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import Any

import httpx
import psutil
from measure import finish, print_table
from serving import Site, opened

_PROXY = "ray::ProxyActor"
_DEADLINE_SECONDS = 120.0


def find_proxy() -> psutil.Process:
    """Return the process of the proxy, a descendant of this one."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if _PROXY in " ".join(process.cmdline()):
                return process
    raise SystemExit("there is no proxy")


def seconds_until_healthy(client: httpx.Client) -> float:
    """Send requests until the server answers."""
    began = time.monotonic()
    while time.monotonic() - began < _DEADLINE_SECONDS:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/healthz", timeout=1).status_code == 200:
                break
        time.sleep(0.05)
    return time.monotonic() - began


def kill_proxies(site: Site, rounds: int) -> dict[str, Any]:
    """Kill the proxy repeatedly."""
    seconds = []
    with site.serving():
        for _ in range(rounds):
            seconds_until_healthy(site.client)
            proxy = find_proxy()
            proxy.kill()
            proxy.wait()
            seconds.append(round(seconds_until_healthy(site.client), 1))
            print(f"back after {seconds[-1]} s", flush=True)
    return {"kills": rounds, "seconds": seconds, "longest_seconds": max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    with opened(args.base) as (site, _):
        site.publish("one", 1)
        facts = kill_proxies(site, args.rounds)
    print_table(facts)
    finish("proxy", facts, args.keep)


if __name__ == "__main__":
    main()
