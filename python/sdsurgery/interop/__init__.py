"""NumPy and torch at the edges: views of checkpoints, and the native kernels on arrays.

With gpu/ and the GPU backends the only place that imports torch, and only when it is handed a tensor or asked for one.
"""
