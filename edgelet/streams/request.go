package streams

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxPorts bounds what one WebSocket may forward: each port costs two channels.
	maxPorts = 64
	// maxCommand and maxCommandBytes bound a command: a kernel's argument list, and
	// what fits into a request of the CRI.
	maxCommand      = 4096
	maxCommandBytes = 128 << 10
)

// options are what the query of exec and attach asks for.
type options struct {
	stdin, stdout, stderr, tty bool
	command                    []string
}

// parseOptions reads the kubelet's query: input, output, error and tty are 1, and
// command is repeated. With a terminal there is no stderr of its own: it is left
// out, as upstream does.
func parseOptions(q url.Values) (options, error) {
	is := func(name string) bool { return q.Get(name) == "1" }
	o := options{stdin: is("input"), stdout: is("output"), stderr: is("error"), tty: is("tty"), command: q["command"]}
	if o.tty {
		o.stderr = false
	}
	if !o.stdin && !o.stdout && !o.stderr {
		return options{}, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, checkCommand(o.command)
}

// parseRun reads the query of /run: one parameter, split at spaces.
func parseRun(q url.Values) ([]string, error) {
	command := strings.Split(q.Get("cmd"), " ")
	if command[0] == "" {
		return nil, errors.New("query parameter \"cmd\" is required: the command, its words separated by single spaces")
	}
	return command, checkCommand(command)
}

func checkCommand(command []string) error {
	n := len(command)
	for _, word := range command {
		n += len(word)
		if strings.ContainsRune(word, 0) {
			return fmt.Errorf("the command has a NUL byte in %q", word)
		}
	}
	if len(command) > maxCommand || n > maxCommandBytes {
		return fmt.Errorf("the command has %d words and %d bytes; at most %d and %d are taken", len(command), n, maxCommand, maxCommandBytes)
	}
	return nil
}

// parsePorts reads the ports that a WebSocket names in its query; SPDY names them
// with each stream.
func parsePorts(r *http.Request) ([]int32, error) {
	if !isWebSocket(r) {
		return nil, nil
	}
	list := r.URL.Query()["port"]
	if len(list) == 0 {
		return nil, errors.New(`query parameter "port" is required`)
	}
	var ports []int32
	for _, text := range list {
		if text == "" {
			return nil, errors.New(`query parameter "port" cannot be empty`)
		}
		for p := range strings.SplitSeq(text, ",") {
			port, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("unable to parse %q as a port: %w", p, err)
			}
			if port < 1 {
				return nil, fmt.Errorf("port %q must be > 0", p)
			}
			if len(ports) == maxPorts {
				return nil, fmt.Errorf("more than %d ports in one request", maxPorts)
			}
			ports = append(ports, int32(port))
		}
	}
	return ports, nil
}

// isWebSocket is upstream's rule (k8s.io/streaming/pkg/httpstream/wsstream).
func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && upgrades(r.Header)
}

// upgrades says whether a request asks for another protocol.
func upgrades(h http.Header) bool {
	return slices.ContainsFunc(h.Values("Connection"), func(v string) bool { return strings.Contains(strings.ToLower(v), "upgrade") })
}

// statusOf is upstream's mapping of a runtime's error (streaming.WriteError): what
// isn't known is the server's fault.
func statusOf(err error) int {
	switch status.Code(err) {
	case codes.NotFound:
		return http.StatusNotFound
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	default:
		return http.StatusInternalServerError
	}
}

// message leaves out what gRPC adds to a runtime's words.
func message(err error) string {
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		return s.Message()
	}
	return err.Error()
}
