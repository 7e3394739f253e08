"""``m2h sweep proxy``: serve a sweep's ledger by gRPC, so that thousands of workers share a few connections to it."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from m2h_lightning.data.arguments import OneLineParser
from m2h_lightning.errors import ConfigError, MissingExtraError
from m2h_lightning.storages.url import one_worker_only, open_storage, shown_url
from m2h_lightning.sweeps.planning.plan import load_plan

_ANY = ("0.0.0.0", "::", "[::]")


def main(words: list[str]) -> int:
    """Serve until Ctrl-C.

    Raises:
        M2HError: The ledger cannot be opened or may not be shared, or the port is taken.
    """
    parser = OneLineParser(prog="m2h sweep proxy", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="?", help="the sweep's folder")
    parser.add_argument("--storage", help="the ledger, instead of the sweep's: postgresql://…, journal:PATH")
    parser.add_argument("--port", type=_port, default=13000, help="port to listen on; 0 takes a free one")
    parser.add_argument(
        "--host", default="localhost", help="address to listen on; 0.0.0.0 is every network (there is no password)"
    )
    options = parser.parse_args(words)
    if (options.folder is None) == (options.storage is None):
        raise ConfigError("m2h sweep proxy: give the folder of a sweep, or --storage URL")
    if options.folder is not None:
        plan = load_plan(options.folder)
        folder, url = plan.folder, plan.storage
    else:
        folder, url = Path.cwd(), options.storage
    if url.startswith("grpc://"):
        raise ConfigError(f"{url} is a proxy already; give the storage behind it: --storage postgresql://…")
    if one_worker_only(url):
        raise ConfigError(f"{url}: SQLite lets two workers claim the same cell, with a proxy too; use another storage")
    return serve(url, folder, options.host, options.port)


def serve(url: str, folder: Path, host: str, port: int) -> int:
    """Serve a storage until this process is told to stop.

    Args:
        url: The storage.
        folder: Folder of the sweep, for a journal's relative path.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Returns:
        130: it was ended by Ctrl-C, or SIGTERM.

    Raises:
        ConfigError: The port is taken.
        MissingExtraError: gRPC is not installed.
    """
    server, bound = _server(url, folder, host, port)
    with _stopped_by(signal.SIGINT, signal.SIGTERM):
        try:
            server.start()
            name = socket.gethostname() if host in _ANY else host
            print(
                f"the ledger {shown_url(url)} is at grpc://{name}:{bound}\n"
                f"  workers: m2h sweep worker FOLDER --storage grpc://{name}:{bound}   (Ctrl-C ends this)",
                flush=True,
            )
            server.wait_for_termination()
        except KeyboardInterrupt:
            print("the proxy ends; workers wait for a while and then give up", flush=True)
        finally:
            server.stop(grace=2.0).wait()
    return 130


def _server(url: str, folder: Path, host: str, port: int) -> tuple[Any, int]:
    """Return Optuna's server, not yet started, and the port that it got."""
    try:
        import grpc
        from optuna.storages._grpc import servicer
        from optuna.storages._grpc.auto_generated import api_pb2_grpc
    except ImportError as error:
        raise MissingExtraError("grpcio", "grpc", "m2h sweep proxy") from error
    storage = open_storage(url, folder)
    # What optuna.storages.run_grpc_proxy_server does, but for a free port, a taken one, and an end.
    server = grpc.server(ThreadPoolExecutor(max_workers=10), options=[("grpc.so_reuseport", 0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        api_pb2_grpc.add_StorageServiceServicer_to_server(servicer.OptunaStorageProxyService(storage), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigError(f"--port {port}: cannot listen on {host}:{port}; it is taken, or not ours to take") from error
    return server, int(bound)


@contextlib.contextmanager
def _stopped_by(*numbers: signal.Signals) -> Iterator[None]:
    """Have these signals raise KeyboardInterrupt, whatever they were set to: a shell's `&` ignores SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port (0 to 65535)")
    return int(text)
