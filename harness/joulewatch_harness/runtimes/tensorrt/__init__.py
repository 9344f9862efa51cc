"""NVIDIA TensorRT, 10 and 11: built-in networks, plain .onnx files, and engines that are built already.

No NVIDIA GPU was at hand when this was written: it is tested against a double of TensorRT's and CUDA's Python
bindings, whose names and parameters were compared with the real ones.

The precision is the file's: float32, float16 or quantised. Flags that let TensorRT choose are not used (TensorRT 11
has none). Only TF32 is a setting, for float32 files, and by TensorRT's default it is on: here ``fp32`` sets it off.
"""
