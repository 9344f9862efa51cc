"""A model behind a server that speaks KServe v2 (the Open Inference Protocol): Triton, OpenVINO Model Server, KServe,
MLServer, TorchServe. Over HTTP (``url: http://...``) or over gRPC (``url: grpc://...``).

The network's name is what the server calls the model; one batch is one request. Tensors travel in binary unless
``binary=false``: as JSON they cost more than the network. What the server says of itself and of the model is read
back; where it keeps statistics (Triton does), its queue and compute times are told as phases.
Energy is that of the machine the server runs on: name its exporter in the plan when it is another one.

``over_http`` and ``over_grpc`` turn tensors into requests and answers into tensors; all else is the same for both
(``network``).
"""
