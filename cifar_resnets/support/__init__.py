"""What has nothing to do with networks: atomic files, allocator, sandbox for modules."""
