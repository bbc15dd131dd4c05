"""The command line `toma-fx`."""
