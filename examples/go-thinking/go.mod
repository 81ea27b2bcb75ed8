module jackfield-plugin

go 1.19
