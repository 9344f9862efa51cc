"""A real llama.cpp server (package xllamacpp) with a model of half a megabyte that ``write_model`` makes.

The model is a llama with random weights: it writes nonsense at thousands of tokens a second, with the counters and the
protocol of a real one.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import requests

from support.servers import Server, free_port

CHILD: Final = Path(__file__).with_name("llama_child.py")
LAYERS, WIDTH, HEADS, HIDDEN = 2, 64, 4, 128


def write_model(path: Path) -> None:
    """Write a GGUF: two layers, 64 wide, a vocabulary of the 256 bytes and some words."""
    import gguf

    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"▁{word}" for word in ("the", "of", "joule", "energy", "watt", "token")]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*special, *byte_tokens, *letters, *words]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * len(byte_tokens)
    kinds += [gguf.TokenType.NORMAL] * (len(letters) + len(words))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(at) for at in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        values = np.ones(shape) if name.endswith("norm.weight") else rng.normal(0, 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))

    tensor("token_embd.weight", len(tokens), WIDTH)
    tensor("output_norm.weight", WIDTH)
    tensor("output.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}"
        tensor(f"{prefix}.attn_norm.weight", WIDTH)
        tensor(f"{prefix}.ffn_norm.weight", WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{prefix}.{name}.weight", WIDTH, WIDTH)
        tensor(f"{prefix}.ffn_gate.weight", HIDDEN, WIDTH)
        tensor(f"{prefix}.ffn_up.weight", HIDDEN, WIDTH)
        tensor(f"{prefix}.ffn_down.weight", WIDTH, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaServer(Server):
    """llama.cpp's server; ``address`` serves the OpenAI API and ``/metrics``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "tiny.gguf"
        if not model.exists():
            write_model(model)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        super().__init__([sys.executable, str(CHILD), str(model), str(port)], folder, f"{self.url}/health")


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: when its answer was complete, and the tokens in it."""

    at_s: float
    prompt: int
    cached: int
    output: int


class Load(threading.Thread):
    """Sends completions to a server, one after the other at a steady rate, until it is stopped.

    Args:
        url: The server.
        period_s: Time from the start of one request to that of the next.
        seed: Of the lengths of prompts and answers.
    """

    def __init__(self, url: str, *, period_s: float = 0.02, seed: int = 0) -> None:
        super().__init__(name="load", daemon=True)
        self._url = url
        self._period_s = period_s
        self._rng = random.Random(seed)
        self._ended = threading.Event()
        self.answers: list[Answered] = []

    def run(self) -> None:
        with requests.Session() as session:
            next_s = time.monotonic()
            while not self._ended.wait(max(next_s - time.monotonic(), 0.0)):
                next_s = max(next_s + self._period_s, time.monotonic())
                self.answers.append(self._ask(session))

    def _ask(self, session: requests.Session) -> Answered:
        words = " ".join(self._rng.choices(("energy", "joule", "watt", "token"), k=self._rng.randrange(2, 30)))
        body = {"model": "tiny", "prompt": words, "max_tokens": self._rng.randrange(4, 40), "ignore_eos": True}
        answer = session.post(f"{self._url}/v1/completions", json=body, timeout=10).json()
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return Answered(time.time(), usage["prompt_tokens"], cached, usage["completion_tokens"])

    def stop(self) -> None:
        self._ended.set()
        self.join(20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
