"""The recall model dense and patched with defaults, on recall, perplexity, bytes and time: the table of README.md."""
