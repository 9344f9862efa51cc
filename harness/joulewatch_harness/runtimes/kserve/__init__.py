"""A model behind a server that speaks KServe v2 (the Open Inference Protocol): Triton, OpenVINO Model Server, KServe,
MLServer, TorchServe. Over HTTP (``url: http://...``) or over gRPC (``url: grpc://...``).

The network's name is what the server calls the model; one batch is one request. Tensors travel in binary unless
``binary=false``: as JSON they cost more than the network. What the server says of itself and of the model is read
back; where it keeps statistics (Triton does), its queue and compute times are told as phases.
Energy is that of the machine the server runs on: name its exporter in the plan when it is another one.

``over_http`` and ``over_grpc`` turn tensors into requests and answers into tensors; all else is the same for both
(``network``).
"""

from __future__ import annotations

from collections.abc import Mapping

from joulewatch_harness.runtimes.http_client import GRPC
from joulewatch_harness.runtimes.kserve.client import Client
from joulewatch_harness.runtimes.kserve.network import KServeNetwork
from joulewatch_harness.runtimes.kserve.options import Options
from joulewatch_harness.runtimes.kserve.over_http import HttpClient


def open_network(network: str, precision: str, options: Mapping[str, str]) -> KServeNetwork:
    """The entry point named in ``runtimes.RUNTIMES``; nothing is asked of the server yet.

    Raises:
        ConfigError: a bad option, a file that cannot be read; gRPC is not installed.
    """
    parsed = Options.parse(network, options)
    client: Client
    if parsed.where.scheme in GRPC:
        from joulewatch_harness.runtimes.kserve.over_grpc import GrpcClient

        client = GrpcClient(parsed.where, network, parsed.version)
    else:
        client = HttpClient(parsed.where, network, parsed.version, binary=parsed.binary)
    return KServeNetwork(network, precision, parsed, client)
