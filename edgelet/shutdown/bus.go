package shutdown

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultBus is the system's bus.
const DefaultBus = "/run/dbus/system_bus_socket"

// callTimeout is how long an answer of the bus is waited for.
const callTimeout = 10 * time.Second

// maxFiles bounds the descriptors that a message may bring.
const maxFiles = 4

// bus is a connection to a message bus.
type bus struct {
	conn *net.UnixConn
	// signals are those that came and weren't read; more than fit end the connection,
	// because one that is lost may be the one.
	signals chan *message
	done    chan struct{} // closed when the connection is over
	err     error         // why, once done is closed

	mu     sync.Mutex
	serial uint32
	calls  map[uint32]chan *message
	files  []int // came, and not yet handed to a message
}

// dialBus connects, says who we are, and asks for the right to get descriptors.
func dialBus(ctx context.Context, path string) (*bus, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("the system's bus: %w", err)
	}
	b := &bus{conn: c.(*net.UnixConn), signals: make(chan *message, 16), done: make(chan struct{}), calls: map[uint32]chan *message{}}
	if err := b.authenticate(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("the system's bus at %s: %w", path, err)
	}
	go b.read()
	if _, err := b.call(ctx, busName, busPath, busName, "Hello", "", nil); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

const (
	busName = "org.freedesktop.DBus"
	busPath = "/org/freedesktop/DBus"
)

func (b *bus) authenticate() error {
	if err := b.conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	// The answers are lines; nothing follows the last of them before BEGIN.
	in := bufio.NewReaderSize(b.conn, 512)
	say := func(line, want string) error {
		if _, err := b.conn.Write([]byte(line + "\r\n")); err != nil {
			return err
		}
		answer, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(answer), want) {
			return fmt.Errorf("it answers %q to %s", strings.TrimSpace(string(answer)), line)
		}
		return nil
	}
	if err := say("\x00AUTH EXTERNAL "+uid, "OK"); err != nil {
		return err
	}
	if err := say("NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD"); err != nil {
		return err
	}
	if _, err := b.conn.Write([]byte("BEGIN\r\n")); err != nil {
		return err
	}
	return b.conn.SetDeadline(time.Time{})
}

// close ends the connection and waits until its reader has.
func (b *bus) close() {
	_ = b.conn.Close()
	<-b.done
}

// call calls a method. An error that the other side answers with is returned as
// one.
func (b *bus) call(ctx context.Context, destination, path, iface, member, signature string, args func(*encoder)) (*message, error) {
	var body encoder
	if args != nil {
		args(&body)
	}
	answer := make(chan *message, 1)
	b.mu.Lock()
	b.serial++
	serial := b.serial
	b.calls[serial] = answer
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.calls, serial)
		b.mu.Unlock()
	}()
	m := message{kind: typeCall, serial: serial, path: path, iface: iface, member: member, destination: destination, signature: signature, body: body.b}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := b.conn.SetWriteDeadline(time.Now().Add(callTimeout)); err != nil {
		return nil, err
	}
	if _, err := b.conn.Write(m.encode()); err != nil {
		return nil, fmt.Errorf("calling %s.%s: %w", iface, member, err)
	}
	select {
	case a := <-answer:
		if a.kind == typeError {
			closeFiles(a.files)
			return nil, fmt.Errorf("calling %s.%s: %s: %s", iface, member, a.errorName, a.args().str())
		}
		return a, nil
	case <-b.done:
		return nil, fmt.Errorf("calling %s.%s: %w", iface, member, b.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("calling %s.%s: %w", iface, member, ctx.Err())
	}
}

// read hands out what comes until the connection is over.
func (b *bus) read() {
	var err error
	for err == nil {
		var m *message
		if m, err = b.next(); err != nil {
			break
		}
		switch m.kind {
		case typeReturn, typeError:
			b.mu.Lock()
			answer := b.calls[m.replySerial]
			delete(b.calls, m.replySerial)
			b.mu.Unlock()
			if answer == nil {
				closeFiles(m.files) // nobody waits any more
				continue
			}
			answer <- m
		case typeSignal:
			closeFiles(m.files)
			select {
			case b.signals <- m:
			default:
				err = errors.New("more signals came than were read")
			}
		default:
			closeFiles(m.files) // nobody has to call us
		}
	}
	_ = b.conn.Close()
	closeFiles(b.files)
	b.err = err
	close(b.done)
}

// next reads a message with the descriptors that belong to it.
func (b *bus) next() (*message, error) {
	fixed := make([]byte, fixedHeader, 512)
	if err := b.fill(fixed); err != nil {
		return nil, err
	}
	header, body, _, err := sizes(fixed)
	if err != nil {
		return nil, err
	}
	raw := append(fixed, make([]byte, header+body)...)
	if err := b.fill(raw[fixedHeader:]); err != nil {
		return nil, err
	}
	m, err := decode(raw)
	if err != nil {
		return nil, err
	}
	if int(m.fds) > len(b.files) {
		return nil, fmt.Errorf("%w: %d descriptors of %d came", ErrMessage, len(b.files), m.fds)
	}
	m.files, b.files = b.files[:m.fds:m.fds], b.files[m.fds:]
	return m, nil
}

// fill reads exactly len(buf) bytes, and the descriptors beside them.
func (b *bus) fill(buf []byte) error {
	oob := make([]byte, syscall.CmsgSpace(4*maxFiles))
	for len(buf) > 0 {
		n, oobn, flags, _, err := b.conn.ReadMsgUnix(buf, oob)
		if oobn > 0 {
			if err := b.take(oob[:oobn]); err != nil {
				return err
			}
		}
		switch {
		case err != nil:
			return fmt.Errorf("the system's bus: %w", err)
		case n == 0:
			return errors.New("the system's bus ended the connection")
		case flags&syscall.MSG_CTRUNC != 0:
			return fmt.Errorf("%w: more than %d descriptors at once", ErrMessage, maxFiles)
		}
		buf = buf[n:]
	}
	return nil
}

func (b *bus) take(oob []byte) error {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		files, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		b.files = append(b.files, files...)
	}
	if len(b.files) > 2*maxFiles {
		return fmt.Errorf("%w: descriptors that belong to nothing", ErrMessage)
	}
	return nil
}

func closeFiles(files []int) {
	for _, fd := range files {
		_ = syscall.Close(fd)
	}
}
