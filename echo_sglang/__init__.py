"""Echo on SGLang: online requests keep their SLO, offline requests fill what they leave idle."""

__version__ = "0.1.0"
