"""Estimators: values in, seconds or tokens out. Pure numpy and scipy."""
