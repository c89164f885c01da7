"""Time, memory and errors, measured side by side."""
