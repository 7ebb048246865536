"""Images in memory, one LightningDataModule a source; import a source by its module."""
