"""Vector environments: several environments that are stepped together, or each at its own pace."""
