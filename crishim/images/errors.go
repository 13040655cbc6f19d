package images

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound is returned when a registry has no such image, or the store
	// doesn't have it.
	ErrNotFound = errors.New("not found")

	// ErrUnauthorized is returned when a registry wants other credentials.
	ErrUnauthorized = errors.New("not authorized")

	// ErrRegistry is returned when a registry can't be reached, or answered
	// something else than what was asked; trying later may help.
	ErrRegistry = errors.New("registry unavailable")

	// ErrInvalidReference is returned when an image reference can't be parsed.
	ErrInvalidReference = errors.New("invalid image reference")

	// ErrInvalidImage is returned when a manifest, a configuration or a layer
	// isn't what it says it is.
	ErrInvalidImage = errors.New("invalid image")

	// ErrNoSpace is returned before the first byte when the file system of
	// the store hasn't room for an image.
	ErrNoSpace = errors.New("no space for the image")

	// ErrNotWasm is returned when the wasm runtime handler was asked for and
	// the image is an ordinary one.
	ErrNotWasm = errors.New("image is not a wasm artifact")
)

// wrapRemote gives an error of containerd's resolver one of our sentinels. The
// text of the cause is kept: it names URL and status.
func wrapRemote(ref string, err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{ErrNotFound, ErrUnauthorized, ErrRegistry, ErrInvalidReference, ErrInvalidImage, ErrNoSpace, ErrNotWasm} {
		if errors.Is(err, known) {
			if !strings.Contains(err.Error(), ref) {
				err = fmt.Errorf("image %q: %w", ref, err)
			}
			return err
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("image %q: %w: it became full while the image was written: %w", ref, ErrNoSpace, err)
	}
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("image %q: %w: %w; check its imagePullSecrets", ref, ErrUnauthorized, err)
		case http.StatusNotFound:
			return fmt.Errorf("image %q: %w: %w", ref, ErrNotFound, err)
		}
		return fmt.Errorf("image %q: %w: %w", ref, ErrRegistry, err)
	}
	var throttled *throttledError
	if errors.As(err, &throttled) {
		return fmt.Errorf("image %q: %w: %w", ref, ErrRegistry, throttled)
	}
	var unknownCA x509.UnknownAuthorityError
	var wrongName x509.HostnameError
	var urlErr *url.Error // not net.Error: that is any errno, too
	var netErr *net.OpError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("image %q: %w", ref, err)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("image %q: %w: %w; check its imagePullSecrets", ref, ErrUnauthorized, err)
	case errdefs.IsNotFound(err) && err.Error() == ref+": not found": // all that the resolver says
		return fmt.Errorf("image %q: %w: neither %s nor a mirror of it that is set up here has this name and tag", ref, ErrNotFound, hostOf(ref))
	case errdefs.IsNotFound(err):
		return fmt.Errorf("image %q: %w: %w", ref, ErrNotFound, err)
	case errors.As(err, &unknownCA), errors.As(err, &wrongName):
		return fmt.Errorf("image %q: %w: %w; name the registry's CA in hosts.toml", ref, ErrRegistry, err)
	case errors.As(err, &urlErr), errors.As(err, &netErr), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("image %q: %w: %w", ref, ErrRegistry, err)
	case errdefs.IsFailedPrecondition(err) && strings.Contains(err.Error(), "unexpected commit"):
		return fmt.Errorf("image %q: %w: a registry sent other bytes than the digest says: %w", ref, ErrInvalidImage, err)
	}
	return fmt.Errorf("image %q: %w", ref, err)
}

// hostOf is the registry in an image's name, for messages.
func hostOf(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "its registry"
	}
	return reference.Domain(named)
}
