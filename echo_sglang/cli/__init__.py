"""The echo-sglang command: profile a server, train a step-time model, plan a fleet."""
