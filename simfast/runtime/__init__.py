"""The machine around a run: processes, terminal, files, versions."""
