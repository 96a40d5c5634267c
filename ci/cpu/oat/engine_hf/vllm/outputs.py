class RequestOutput:
    """Oat imports the name."""
