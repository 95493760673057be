"""Weight files: what is in them, and where they come from. Knows no model."""
