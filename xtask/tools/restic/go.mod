module cistern.dev/tools/restic

go 1.26

require github.com/restic/restic v0.19.1
