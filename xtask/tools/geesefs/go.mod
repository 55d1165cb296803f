module cistern.dev/tools/geesefs

go 1.26

require github.com/yandex-cloud/geesefs v0.43.8

// As in the program's own go.mod. `cargo xtask tools` puts the SDK there.
replace github.com/aws/aws-sdk-go => ./s3ext

replace github.com/winfsp/cgofuse => github.com/vitalif/cgofuse v0.0.0-20230609211427-22e8fa44f6b8

replace github.com/jacobsa/fuse => github.com/vitalif/fusego v0.0.0-20241023174951-7a12c251bb93
