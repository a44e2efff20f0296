"""Keeps an engine alive from outside it: `echo-sglang serve`. Knows no SGLang."""
