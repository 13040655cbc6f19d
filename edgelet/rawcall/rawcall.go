// Package rawcall makes unary gRPC calls whose messages are bytes: the few
// messages of plugin registration and of CSI are written by hand with protowire,
// because generated code costs a board memory whether or not it has a plugin.
//
// edgelet/pluginwatch, edgelet/csi and edgelet/claims call it, edgelet/podresources and
// edgelet/devices serve with it. It imports grpc only.
package rawcall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

// maxReply bounds a reply in bytes.
const maxReply = 1 << 20

// ErrMalformed is returned by decoders when a reply is not the message it should be.
var ErrMalformed = errors.New("malformed message")

// reconnect is how often a socket that isn't served is tried.
func reconnect() grpc.ConnectParams {
	return grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}, MinConnectTimeout: time.Second}
}

// Call calls a method, such as /csi.v1.Node/NodeGetInfo, at a Unix socket and
// closes the connection again: a plugin that isn't called costs nothing. It
// waits for the socket to be served until ctx ends. An error keeps its gRPC
// status ([status.FromError]).
func Call(ctx context.Context, socket, method string, in []byte) ([]byte, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxReply), grpc.WaitForReady(true)),
		grpc.WithConnectParams(reconnect()))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	defer conn.Close()
	var out []byte
	if err := conn.Invoke(ctx, method, &in, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// Final says that a call was refused for good or for now, but did not leave open
// whether it was carried out: the CSI specification's rule for what must be
// repeated or undone (upstream: csi_client.go, isFinalError).
func Final(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// Codec is for a server whose messages are bytes: what it reads and answers is a
// *[]byte.
func Codec() encoding.Codec { return codec{} }

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("rawcall: can't send a %T", v)
	}
	return *b, nil
}

func (codec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("rawcall: can't receive into a %T", v)
	}
	*b = bytes.Clone(data)
	return nil
}
