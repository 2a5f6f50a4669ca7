"""GPU code: the CUDA kernels (``_cuda``, where nvcc built them) and the Triton kernel (``elementwise``)."""
