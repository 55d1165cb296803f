// Two calls of Yandex's object store that geesefs asks the S3 SDK for, and the stock SDK lacks; they are made
// with its options --list-type ext-v1 and --enable-patch only.
package s3

import (
	"io"
	"time"

	"github.com/aws/aws-sdk-go/aws/request"
)

type ListObjectsV1ExtInput ListObjectsV2Input
type ListObjectsV1ExtOutput ListObjectsV2Output

func (c *S3) ListObjectsV1ExtRequest(in *ListObjectsV1ExtInput) (*request.Request, *ListObjectsV1ExtOutput) {
	out := &ListObjectsV1ExtOutput{}
	return c.newRequest(&request.Operation{Name: "ListObjectsV1Ext", HTTPMethod: "GET", HTTPPath: "/{Bucket}?list-type=ext-v1"}, in, out), out
}

type PatchedObjectInfo struct {
	ETag         *string    `type:"string"`
	LastModified *time.Time `type:"timestamp"`
}
type PatchObjectOutput struct {
	_      struct{}           `type:"structure"`
	Object *PatchedObjectInfo `type:"structure"`
}
type PatchObjectInput struct {
	_                   struct{}      `locationName:"PatchObjectRequest" type:"structure" payload:"Body"`
	Body                io.ReadSeeker `type:"blob"`
	Bucket              *string       `location:"uri" locationName:"Bucket" type:"string" required:"true"`
	ContentRange        *string       `location:"header" locationName:"Content-Range" type:"string" required:"true"`
	Key                 *string       `location:"uri" locationName:"Key" min:"1" type:"string" required:"true"`
	PatchAppendPartSize *int64        `location:"header" locationName:"X-Yc-S3-Patch-Append-Part-Size" type:"integer"`
}

func (c *S3) PatchObjectRequest(in *PatchObjectInput) (*request.Request, *PatchObjectOutput) {
	out := &PatchObjectOutput{}
	return c.newRequest(&request.Operation{Name: "PatchObject", HTTPMethod: "PATCH", HTTPPath: "/{Bucket}/{Key+}"}, in, out), out
}
