"""The pages of results: one file per kind, with ``KIND``, the name of the result's class, and ``view(found)``."""
