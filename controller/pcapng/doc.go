// Package pcapng writes the stream of a capture (api.CaptureStream) as pcapng (draft-ietf-opsawg-pcapng), with what rscctl knows of
// each frame in its comment. It knows nothing of who captured, and nothing of files.
package pcapng
