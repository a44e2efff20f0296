"""Pure policies: values in, decisions out. No clock, no I/O, no SGLang."""
