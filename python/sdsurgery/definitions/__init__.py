"""What the native kernels compute, written a second time over NumPy arrays and mpmath: the definition of each."""
