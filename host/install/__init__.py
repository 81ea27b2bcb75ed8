"""Plugins from archives: checked, unpacked, pinned. Nothing of an archive is executed here.

tree.py       what lies in a plugin's folder, as names and digests
lock.py       `plugins.lock`: what was installed, and whether it is still that
archive.py    zip files and wheels: which entries are acceptable, and their extraction
download.py   archives and registries over https
registry.py   registry files: which plugins there are to install
versions.py   whether a version is newer
swap.py       one folder in the place of another, in one step
site.py       one operator's configuration and what lies beside it
obtain.py     from a path, a URL or an id to an archive on disk
place.py      folders change hands, together with the lock
text.py       text of strangers on a terminal
show.py       what a plugin is and what an upgrade changes, as lines for a terminal
"""
