"""Every verb as a function. docs/api.md is about the package as a library.

Each verb that writes a checkpoint takes ``out`` (a file, or None for a dry run), keywords of its own, and the settings
of ``sdsurgery.Settings`` as keywords: ``dtype="fp16"``, ``overwrite=True``, ``threads=4``, ``progress=…``. It returns a
``Report``. It raises UsageError or InputRefused before the first output byte, RunFailed or Interrupted afterwards; the
target is then unchanged. A keyword that doesn't exist is a TypeError, with close matches.
"""
