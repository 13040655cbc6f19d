package enrollment

import (
	"bufio"
	"errors"
	"io"
	"net/http"
)

// maxHead bounds the head of an answer, in bytes, and maxSaid what an error tells
// of one that isn't HTTP.
const (
	maxHead = 16 << 10
	maxSaid = 512
)

// ErrHead is returned when the head of an answer is too long.
var ErrHead = errors.New("the head of the answer has no end within 16 KiB")

// ReadAnswer reads the head of the answer to a request of that method from conn,
// where the other side may be anybody: no more than 16 KiB of it are kept. Body and
// stream are read from the reader that it returns.
func ReadAnswer(conn io.Reader, method string) (*http.Response, *bufio.Reader, error) {
	head := &bounded{from: conn, left: maxHead}
	reader := bufio.NewReaderSize(head, 4096)
	response, err := http.ReadResponse(reader, &http.Request{Method: method})
	if err != nil {
		return nil, nil, &said{err}
	}
	head.left = -1
	return response, reader, nil
}

// bounded gives no more than left bytes; -1: all.
type bounded struct {
	from io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return b.from.Read(p)
	}
	if b.left == 0 {
		return 0, ErrHead
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// said is an error of net/http's, which quotes all that was sent.
type said struct{ err error }

func (s *said) Error() string {
	text := s.err.Error()
	return text[:min(len(text), maxSaid)]
}

func (s *said) Unwrap() error { return s.err }
