"""Helpers below all other packages: atomic files, text, constructors' signatures, the allocator, module sandboxes."""
