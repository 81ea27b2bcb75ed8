"""New plugins: folders that run, in every language the gateway has a support file for."""
