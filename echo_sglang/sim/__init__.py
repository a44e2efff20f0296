"""The real scheduler on a virtual clock, with an emulated accelerator below it."""
