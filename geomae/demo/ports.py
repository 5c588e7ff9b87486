"""Where the page can be served, asked before a model is loaded."""

import socket
from importlib.util import find_spec

from geomae.errors import ConfigError

__all__ = ["find_port"]

FIRST_PORT, NUM_PORTS = 7860, 100  # Gradio's


def find_port(server_name: str | None, server_port: int | None) -> int:
    """The port that was asked for, or the first that is free.

    Args:
        server_name: address to listen on; None for this machine alone.
        server_port: None for any from 7860.

    Raises:
        ConfigError: the port is taken, this machine has no such address, or Gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise ConfigError("the page needs Gradio: pip install 'geomae[demo]', or pip install gradio")
    host = server_name or "127.0.0.1"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"server_name is {host!r}, which is no address that is known here: {error}") from error
    reason: OSError | None = None
    for port in [server_port] if server_port else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        try:
            with socket.socket(family, kind, protocol) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address[0], port))
                return port
        except OSError as error:
            reason = error
    ports = f"port {server_port}" if server_port else f"any port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}"
    raise ConfigError(
        f"the page cannot be served at {host}, {ports}: {reason}. Choose another with --server_port, or let another "
        "page stop first"
    ) from reason
