"""The verbs: one file each. A verb decides what becomes of every tensor, and lets ``common.run`` do it."""
