"""Adapters (LoRA, LyCORIS and friends): what their files hold, which tensors they change, and how they are made."""
