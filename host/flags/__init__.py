"""Options of the command `jackfield` that plugins bring: `[[flags]]` in plugin.toml, `command_line.execute` (spec 7.7).

table.py   whose options there are, from manifests alone
values.py  the types of options and the one way to write each value
parse.py   a command line with such options
"""
