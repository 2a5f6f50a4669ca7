"""What the GPU backends share: a Plan cut into tiles, the pipeline from file to file, and tensors that are already on
a device. Nothing here calls a device itself; ``backends/cuda.py`` and ``backends/triton.py`` do."""
