"""NVIDIA TensorRT, 10 and 11: built-in networks, .onnx files, and engine files.

Experimental: it has not been run on a GPU. It is tested against a double of TensorRT's and CUDA's Python bindings,
which checks calls against the recorded API of the real ones.

The precision is the file's: float32, float16 or quantised. Flags that let TensorRT choose are not used (TensorRT 11
has none). Only TF32 is a setting, for float32 files. TensorRT's default is on; the precision ``fp32`` disables it.
"""
