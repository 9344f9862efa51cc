"""Triton from nvidia-pytriton with one model, y = x summed: ``triton_child.py HTTP GRPC METRICS`` (ports)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def main() -> None:
    from pytriton.decorators import batch
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    http, grpc, metrics = map(int, sys.argv[1:])
    config = TritonConfig(
        http_address="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=metrics, allow_gpu_metrics=False
    )

    @batch
    def infer(x: Any) -> dict[str, Any]:
        return {"y": x @ np.ones((4, 3), np.float32)}

    with Triton(config=config) as triton:
        triton.bind(
            model_name="matmul",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(4,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(3,))],
            config=ModelConfig(max_batch_size=16),
        )
        triton.serve()


if __name__ == "__main__":
    main()
