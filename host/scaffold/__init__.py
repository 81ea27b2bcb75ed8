"""New plugins: folders that run, in every language the gateway has a support file for."""

from host.scaffold.support_files import support_file

__all__ = ["support_file"]
