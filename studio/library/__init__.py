"""The registry: what exists in the data folder, as rows that can be listed and searched. The files are the truth."""
