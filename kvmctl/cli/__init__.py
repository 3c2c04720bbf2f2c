"""The command line: one module per noun, output formats, exit codes."""
