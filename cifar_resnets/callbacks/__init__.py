"""What happens around training: what the console shows, and the files beside the logs."""
