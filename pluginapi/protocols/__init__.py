"""Wire protocols that the host and every plugin author share. Import the submodule you need."""
