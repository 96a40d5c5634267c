"""Published names for text parsing and constants."""
