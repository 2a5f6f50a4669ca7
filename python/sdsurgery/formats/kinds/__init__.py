"""The file formats: one module each, with a ``FORMAT``. They are asked in the order of their names."""
