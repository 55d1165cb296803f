module cistern.dev/tools/s3driver

go 1.26

require github.com/yandex-cloud/k8s-csi-s3 v0.43.7
