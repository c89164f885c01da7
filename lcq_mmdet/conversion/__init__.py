"""From a float detector to a quantized one: by config, by name, in place."""
