"""The contract every method keeps with transformers, on every family: one list of models, one of settings."""
