"""Class-activation maps: where a network looks to tell a class."""
