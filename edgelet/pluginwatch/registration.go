package pluginwatch

import (
	"context"
	"fmt"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// getInfo asks a socket whose it is.
func getInfo(ctx context.Context, socket string) (Plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, err := rawcall.Call(ctx, socket, "/pluginregistration.Registration/GetInfo", nil)
	if err != nil {
		return Plugin{}, fmt.Errorf("asking plugin %s what it is: %w", socket, err)
	}
	p, err := decodeInfo(raw)
	if err != nil {
		return Plugin{}, fmt.Errorf("what plugin %s says it is: %w", socket, err)
	}
	p.Socket = socket
	if p.Endpoint == "" {
		p.Endpoint = socket
	}
	return p, nil
}

// decodeInfo reads a pluginregistration.v1.PluginInfo.
func decodeInfo(raw []byte) (Plugin, error) {
	var p Plugin
	err := rawcall.Fields(raw, func(field protowire.Number, value []byte) error {
		switch s := string(value); field {
		case 1:
			p.Type = s
		case 2:
			p.Name = s
		case 3:
			p.Endpoint = s
		case 4:
			p.Versions = append(p.Versions, s)
		}
		return nil
	}, nil)
	switch {
	case err != nil:
	case p.Type == "" || p.Name == "":
		err = fmt.Errorf("%w: type %q, name %q", rawcall.ErrMalformed, p.Type, p.Name)
	case p.Endpoint != "" && !filepath.IsAbs(p.Endpoint):
		err = fmt.Errorf("%w: endpoint %q is no absolute path", rawcall.ErrMalformed, p.Endpoint)
	}
	return p, err
}

// notify tells a plugin whether it was registered.
func notify(ctx context.Context, socket string, why error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var m rawcall.Message
	m.Bool(1, why == nil)
	if why != nil {
		m.String(2, why.Error())
	}
	if _, err := rawcall.Call(ctx, socket, "/pluginregistration.Registration/NotifyRegistrationStatus", m); err != nil {
		return fmt.Errorf("telling plugin %s that it is registered: %w", socket, err)
	}
	return nil
}
