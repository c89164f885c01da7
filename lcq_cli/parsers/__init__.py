"""The flags of each command, and what can be wrong with them."""
