"""Models behind servers with KServe v2 (the Open Inference Protocol): Triton, OpenVINO Model Server, KServe, MLServer,
TorchServe; over HTTP (``url: http://...``) or gRPC (``url: grpc://...``).

The network's name is that of the model in the server; one batch is one request. Tensors are sent in binary unless
``binary=false``: as JSON they cost more than the network. The descriptions of server and model are read back; if the
server has statistics (Triton does), its queue and compute times become phases.
The energy is that of the machine on which the server runs: if it is another one, name its exporter in the plan.

``over_http`` and ``over_grpc`` convert between tensors and messages; the rest is common to both (``network``).
"""
