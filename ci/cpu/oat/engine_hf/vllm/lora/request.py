class LoRARequest:
    """Not supported; Oat imports the name."""
