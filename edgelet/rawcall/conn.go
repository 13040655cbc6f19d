package rawcall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// connBuffer is small: what these connections carry is, and there are few.
const connBuffer = 4 << 10

// maxReconnect is how often, at the least, a plugin is looked for that is
// registered and doesn't answer.
const maxReconnect = 10 * time.Second

// Conn is a connection to a plugin that is kept, for callers that must notice its
// death. It costs a few goroutines and 10 KB.
type Conn struct {
	conn *grpc.ClientConn
}

// Dial returns a connection to a Unix socket; it is made when it is first used or
// followed.
func Dial(socket string) (*Conn, error) {
	slowly := reconnect()
	slowly.Backoff.MaxDelay = maxReconnect
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(connBuffer), grpc.WithWriteBufferSize(connBuffer), grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithConnectParams(slowly))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	return &Conn{conn}, nil
}

// Close ends the connection and all calls.
func (c *Conn) Close() { _ = c.conn.Close() }

// Call calls a method. A plugin that isn't there is an error at once.
func (c *Conn) Call(ctx context.Context, method string, in []byte) ([]byte, error) {
	if c.conn.GetState() == connectivity.TransientFailure {
		c.conn.ResetConnectBackoff() // somebody asks, so the next one that does finds it
	}
	var out []byte
	if err := c.conn.Invoke(ctx, method, &in, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// Stream calls a method that answers with a stream, and hands each message to
// each; the bytes are its own. It returns nil when the plugin ended the stream.
func (c *Conn) Stream(ctx context.Context, method string, in []byte, each func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err == nil {
		err = s.SendMsg(&in)
	}
	if err == nil {
		err = s.CloseSend()
	}
	for err == nil {
		var out []byte
		if err = s.RecvMsg(&out); err == nil {
			err = each(out)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Follow keeps the connection up and says each time it was made or lost, until ctx
// ends or the connection is closed.
func (c *Conn) Follow(ctx context.Context, connected func(bool)) {
	was := false
	for {
		state := c.conn.GetState()
		if now := state == connectivity.Ready; now != was {
			was = now
			connected(now)
		}
		switch state {
		case connectivity.Shutdown:
			return
		case connectivity.Idle:
			c.conn.Connect()
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}
