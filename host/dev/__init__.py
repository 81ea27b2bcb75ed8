"""`jackfield plugins dev`: a private gateway around one plugin that is being written."""
