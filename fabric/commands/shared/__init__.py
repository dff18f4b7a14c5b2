"""Code that several sub-commands share."""
