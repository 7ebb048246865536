"""The files of a run: its folder, its checkpoints and logs, and how it is resumed from them."""
