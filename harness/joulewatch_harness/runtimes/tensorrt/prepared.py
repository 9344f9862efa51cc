"""A batch that is ready to run: a context of an engine with its tensors bound, and perhaps a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from joulewatch_harness import networks
from joulewatch_harness.errors import NetworkError, UnsupportedBatchError
from joulewatch_harness.runtimes.tensorrt import tensors
from joulewatch_harness.runtimes.tensorrt.device import Cuda, Held
from joulewatch_harness.runtimes.tensorrt.libraries import Libraries, Messages
from joulewatch_harness.runtimes.tensorrt.tensors import Tensor

GRAPH_WARMUPS: Final = 3


class PreparedBatch:
    """The execution context, tensors and graph of one batch size, with the memory that they need."""

    def __init__(
        self, libraries: Libraries, cuda: Cuda, messages: Messages, *, engine: Any, stream: Any, name: str
    ) -> None:
        """Create nothing yet: see ``bind``.

        Args:
            libraries: TensorRT.
            cuda: The functions of CUDA.
            messages: The messages of TensorRT.
            engine: The engine.
            stream: The stream of all work.
            name: Name of the model in errors.
        """
        self._trt = libraries.trt
        self._cuda = cuda
        self._messages = messages
        self._engine = engine
        self._stream = stream
        self._name = name
        self._held = Held(cuda)
        self._context: Any = None
        self._batch = 0
        self.graph: Any = None
        """The batch as a CUDA graph, after ``capture``."""
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def bind(
        self, batch: int, arrays: networks.Arrays, ranges: Sequence[tuple[int, int, int]], *, copies: bool
    ) -> None:
        """Create a context and device memory for its tensors, and fill the inputs.

        Args:
            batch: The batch size.
            arrays: The inputs.
            ranges: Of the profiles of an engine file, from ``tensors.batch_ranges``; of other engines empty.
            copies: Whether each batch copies inputs and outputs, through pinned memory of the host.

        Raises:
            UnsupportedBatchError: the engine does not accept the batch size.
            MemoryError: the device has no memory for it.
            NetworkError: TensorRT refuses the batch.
        """
        held, trt, model = self._held, self._trt, self._name
        self._batch = batch
        self._context = self.new_context()
        self._choose_profile(batch, ranges)
        held_arrays = {name: arrays[name] for name in tensors.input_names(trt, self._engine)}
        self._set_shapes(self._context, {name: array.shape for name, array in held_arrays.items()}, batch)
        for name, array in held_arrays.items():
            dtype = tensors.dtype_of(self._engine, name, model)
            tensor = Tensor(name=name, dtype=dtype, array=array, address=held.memory(array.nbytes))
            if copies:
                tensor.pinned = held.pinned(array.shape, array.dtype)
                tensor.pinned[...] = array
            self.inputs.append(tensor)
        for name in tensors.output_names(trt, self._engine):
            dtype = tensors.dtype_of(self._engine, name, model)
            shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise NetworkError(
                    f"{model}: the size of output {name!r} depends on the values of the inputs, which is not supported"
                )
            array = np.empty(shape, np.uint16 if dtype == "bfloat16" else dtype)
            tensor = Tensor(name=name, dtype=dtype, array=array, address=held.memory(array.nbytes))
            if copies:
                tensor.pinned = held.pinned(array.shape, array.dtype)
            self.outputs.append(tensor)
        self._set_addresses(self._context)
        for tensor in self.inputs:
            self._cuda.upload(tensor.address, tensor.array, self._stream)

    def bind_context(self, context: Any) -> None:
        """Bind the same tensors to another context."""
        if self._engine.num_optimization_profiles > 1:
            self._switch_profile(context, int(self._context.active_optimization_profile))
        self._set_shapes(context, {item.name: item.array.shape for item in self.inputs}, self._batch)
        self._set_addresses(context)

    def new_context(self) -> Any:
        """Return an execution context of the engine, without tensors."""
        self._messages.forget()
        context = self._engine.create_execution_context()
        if context is None:
            text = f"{self._name}: no memory for the activations: {self._messages.reasons()}"
            raise MemoryError(text) if self._messages.no_memory() else NetworkError(text)
        # Engines with detailed layers also report them to NVIDIA's profilers, which makes each launch slower.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        return context

    def capture(self) -> None:
        """Record the launches of one batch as a CUDA graph, which is replayed by one call."""
        # The first launch after a change of shapes cannot be captured.
        for _ in range(GRAPH_WARMUPS):
            self.enqueue()
        self.wait()
        try:
            self.graph = self._held.graph(self._stream, self.enqueue)
        except NetworkError as error:
            raise NetworkError(
                f"{self._name}: cannot be captured as a CUDA graph (loops and layers that wait for the "
                f"device cannot): set cuda_graph=false: {error}"
            ) from error
        self.launch()
        self.wait()

    def enqueue(self, context: Any = None) -> None:
        """Launch a batch, by default in the context of ``bind``.

        Raises:
            MemoryError: the device has no memory for it.
            NetworkError: TensorRT did not launch it.
        """
        if not (self._context if context is None else context).execute_async_v3(int(self._stream)):
            text = f"{self._name}: TensorRT did not launch a batch: {self._reasons()}"
            raise MemoryError(text) if self._messages.no_memory() else NetworkError(text)

    def launch(self) -> None:
        """Launch the batch: the CUDA graph if it was captured."""
        if self.graph is None:
            self.enqueue()
        else:
            self._cuda("cudaGraphLaunch", self.graph, self._stream)

    def wait(self) -> None:
        """Wait until the device has finished."""
        self._cuda("cudaStreamSynchronize", self._stream)

    def copies(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return functions that launch the copies of the inputs to the device, and of the outputs from it."""
        cuda, stream = self._cuda, self._stream
        to_device = cuda.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        to_host = cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        coming = [(item.address, item.pinned) for item in self.inputs if item.pinned is not None]
        going = [(item.pinned, item.address) for item in self.outputs if item.pinned is not None]
        sent = [(address, array.ctypes.data, array.nbytes, to_device, stream) for address, array in coming]
        fetched = [(array.ctypes.data, address, array.nbytes, to_host, stream) for array, address in going]

        def copy_in() -> None:
            for copy in sent:
                cuda("cudaMemcpyAsync", *copy)

        def copy_out() -> None:
            for copy in fetched:
                cuda("cudaMemcpyAsync", *copy)

        return copy_in, copy_out

    def close(self) -> None:
        """Release graph and context, then their memory; the device must have finished. Safe to call twice."""
        self.graph = self._context = None
        self.inputs, self.outputs = [], []
        self._held.close()

    def _choose_profile(self, batch: int, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Select the best profile of an engine file with several profiles."""
        fitting = [number for number, (least, _, most) in enumerate(ranges) if least <= batch <= most]
        if ranges and not fitting:
            accepted = ", ".join(f"{least} to {most}" for least, _, most in ranges)
            raise UnsupportedBatchError(f"{self._name}: the engine accepts batch sizes {accepted}, not {batch}")
        if len(ranges) > 1:
            self._switch_profile(self._context, min(fitting, key=lambda number: abs(ranges[number][1] - batch)))

    def _switch_profile(self, context: Any, number: int) -> None:
        if not context.set_optimization_profile_async(number, int(self._stream)):
            raise NetworkError(f"{self._name}: TensorRT refuses profile {number}: {self._reasons()}")
        self.wait()

    def _set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]], batch: int) -> None:
        name = self._name
        self._messages.forget()
        for tensor, shape in shapes.items():
            if not context.set_input_shape(tensor, shape):
                raise UnsupportedBatchError(
                    f"{name}: batch {batch}: TensorRT refuses the shape {shape} of {tensor!r}: {self._reasons()}"
                )
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise NetworkError(f"{name}: batch {batch}: {error}: {self._reasons()}") from error
        if missing:
            raise NetworkError(f"{name}: batch {batch}: the shapes of {', '.join(missing)} are unknown")

    def _set_addresses(self, context: Any) -> None:
        for tensor in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(tensor.name, tensor.address):
                raise NetworkError(f"{self._name}: TensorRT refuses the memory of {tensor.name!r}")

    def _reasons(self) -> str:
        return self._messages.reasons() or "no reason"
