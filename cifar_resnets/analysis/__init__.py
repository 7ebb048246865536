"""What networks see: receptive fields in theory, as measured, and in effect."""
