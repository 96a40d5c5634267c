"""Vector environments: several environments that are stepped together."""
