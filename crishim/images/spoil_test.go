package images

import (
	"crypto/tls"
	"io"
	"net/http"
)

func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func copyBody(w io.Writer, r io.Reader) (int64, error) { return io.Copy(w, r) }

// cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) >= c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// spoilWriter changes the bytes on the way.
type spoilWriter struct{ http.ResponseWriter }

func (s *spoilWriter) Write(p []byte) (int, error) {
	q := append([]byte{}, p...)
	q[len(q)-1] ^= 1
	return s.ResponseWriter.Write(q)
}
