"""The KServe v2 server of ``kserve_server`` over gRPC: correct outputs, selectable faults.

It uses joulewatch's own message classes; tests/harness compares them with the bytes of another client.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from joulewatch_harness.runtimes.kserve.messages import message_classes
from joulewatch_harness.runtimes.kserve.over_grpc import SERVICE
from support.kserve_server import NUMPY, Backend, InvalidError, Settings

THREADS = 32
KIND_CPU = 2


class KServeGrpcServer:
    """Starts when it is created, on a free port; a context manager.

    Args:
        model: An .onnx file.
        settings: As for HTTP.
        largest_message: Limit in bytes; -1: no limit, as Triton has it.
        port: TCP port; 0: any free port.
    """

    def __init__(
        self, model: Path, settings: Settings | None = None, *, largest_message: int = -1, port: int = 0
    ) -> None:
        self.settings = settings or Settings()
        self.backend = Backend(model, self.settings)
        self.classes = message_classes()
        self.requests: list[str] = []
        """Method of each request."""
        self.heads: list[dict[str, str]] = []
        """Metadata of each inference."""
        self.peers: set[str] = set()
        """The other end of each connection with an inference."""
        options = [("grpc.max_receive_message_length", largest_message), ("grpc.max_send_message_length", -1)]
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc-double")
        self._server = grpc.server(self._pool, options=[*options, ("grpc.so_reuseport", 0)])
        methods = {
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelReady": self._model_ready,
            "ModelInfer": self._model_infer,
            "RepositoryIndex": self._index,
            **({"ModelStatistics": self._statistics} if self.settings.statistics else {}),
            **({"ModelConfig": self._config} if self.settings.max_batch else {}),
        }
        handlers = {name: self._handler(name, answer) for name, answer in methods.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        address = f"127.0.0.1:{port}"
        if self.settings.certificate is None:
            self.port = self._server.add_insecure_port(address)
        else:
            certificate, key = (path.read_bytes() for path in self.settings.certificate)
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
        self.url = f"grpc{'s' if self.settings.certificate else ''}://127.0.0.1:{self.port}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()

    def _handler(self, name: str, answer: Callable[[Any, Any], Any]) -> Any:
        def handle(request: Any, context: Any) -> Any:
            self.requests.append(name)
            key = self.settings.key
            authorization = dict(context.invocation_metadata()).get("authorization", "none")
            if key and authorization != f"Bearer {key}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, f"wrong key: {authorization}")
            model = request.model_name if name == "ModelInfer" else getattr(request, "name", self.settings.name)
            version = request.model_version if name == "ModelInfer" else getattr(request, "version", "")
            if model != self.settings.name or version not in ("", "1"):
                context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{model}' is not found")
            return answer(request, context)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=self.classes[f"{name}Request"].FromString,
            response_serializer=lambda answer: answer if isinstance(answer, bytes) else answer.SerializeToString(),
        )

    def _server_metadata(self, _: Any, context: Any) -> Any:
        return self.classes["ServerMetadataResponse"](
            name=self.settings.server, version="9.1", extensions=self.settings.extensions
        )

    def _model_metadata(self, _: Any, context: Any) -> Any:
        return self.classes["ModelMetadataResponse"](**self.backend.metadata())

    def _model_ready(self, _: Any, context: Any) -> Any:
        return self.classes["ModelReadyResponse"](ready=self.settings.ready)

    def _index(self, _: Any, context: Any) -> Any:
        return self.classes["RepositoryIndexResponse"](
            models=[{"name": self.settings.name, "version": "1", "state": "READY"}]
        )

    def _statistics(self, _: Any, context: Any) -> Any:
        stats = {"name": self.settings.name, "version": "1", "inference_stats": self.backend.stats()}
        return self.classes["ModelStatisticsResponse"](model_stats=[stats])

    def _config(self, _: Any, context: Any) -> Any:
        return self.classes["ModelConfigResponse"](
            config={
                "name": self.settings.name,
                "max_batch_size": self.settings.max_batch,
                "backend": "onnxruntime",
                "instance_group": [{"name": "a", "kind": KIND_CPU}],
            }
        )

    def _model_infer(self, request: Any, context: Any) -> Any:
        faults = self.settings.faults
        self.heads.append({key: str(value) for key, value in context.invocation_metadata()})
        self.peers.add(context.peer())
        with self.backend.in_flight_request():
            if self.backend.answers_with_status(request.inputs[0].shape[0]):
                context.abort(grpc.StatusCode[faults.code], "out of memory on the device")
            began_ns, inputs = time.monotonic_ns(), {}
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
                values = np.frombuffer(raw, NUMPY[tensor.datatype])
                if values.size != math.prod(tensor.shape):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"input {tensor.name} has {values.size} values")
                inputs[tensor.name] = (tensor.datatype, values.reshape(tensor.shape))
            try:
                results = self.backend.infer(inputs, began_ns)
            except InvalidError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = self.classes["ModelInferResponse"](model_name=self.settings.name, model_version="1")
        for result in results:
            output = answer.outputs.add(name=result.name, datatype=result.datatype, shape=result.values.shape)
            if faults.json_outputs:
                output.contents.fp32_contents.extend(result.values.ravel().tolist())
            else:
                answer.raw_output_contents.append(np.ascontiguousarray(result.values).tobytes())
        if faults.cut:
            content: bytes = answer.SerializeToString()
            return content[: len(content) // 2]
        return answer
