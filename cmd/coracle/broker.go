package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

func brokerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "broker", Short: "Set up an MQTT broker of your own in the place of the embedded one"}
	cmd.AddCommand(mosquittoCommand(), natsCommand())
	return cmd
}

// brokerOptions are what every make of broker is set up with.
type brokerOptions struct {
	dataDir, pkiDir, listen string
	hosts                   []string
	port                    int
}

func (o *brokerOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.dataDir, "data-dir", defaultDataDir(), "the data folder of `coracle up`")
	f.StringVar(&o.pkiDir, "pki-dir", "", "the control plane's pki folder, where it isn't below --data-dir")
	f.StringArrayVar(&o.hosts, "host", []string{"127.0.0.1"}, "name or address under which nodes and control plane reach the broker; may be repeated")
	f.StringVar(&o.listen, "listen", "0.0.0.0", "address on which the broker listens")
	f.IntVar(&o.port, "port", 8884, "port on which the broker listens")
}

// hint says how to go on.
func (o *brokerOptions) hint(start string) string {
	return fmt.Sprintf("Start the broker:\n\n    %s\n\nand the control plane with --mqtt-url=mqtts://%s:%d (`coracle up` takes it as --controlplane-arg=--mqtt-url=…).\n", start, o.hosts[0], o.port)
}

func mosquittoCommand() *cobra.Command {
	var o brokerOptions
	cmd := &cobra.Command{
		Use:   "mosquitto DIR",
		Short: "Write a mosquitto.conf for the fleet link, with its ACL and a certificate of the cluster's, into DIR",
		Long: `Write what mosquitto needs to carry the fleet link into DIR: mosquitto.conf, the
ACL, the cluster's root certificate, and a certificate that the cluster's root
signed. It is to be run where the control plane's data folder is, once before the
first start or at any time later, and again before the certificate ends (a year).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := writeMosquitto(args[0], o)
			if err != nil {
				return fmt.Errorf("broker mosquitto: %w", err)
			}
			fmt.Fprint(cmd.OutOrStdout(), o.hint("mosquitto -c "+conf))
			return nil
		},
	}
	o.flags(cmd.Flags())
	return cmd
}

func natsCommand() *cobra.Command {
	var o brokerOptions
	var nodes []string
	cmd := &cobra.Command{
		Use:   "nats DIR",
		Short: "Write a nats.conf for the fleet link, with a certificate of the cluster's, into DIR",
		Long: `Write what nats-server (2.12.6 or later) needs to carry the fleet link into DIR:
nats.conf, the cluster's root certificate, and a certificate that the cluster's
root signed. It is to be run where the control plane's data folder is, and again
before the certificate ends (a year).

NATS admits only users that its configuration names. So name every node that
joined or is to join, run this again when one more is to join, and have the
server read the file again with nats-server --signal reload. Names with a dot in
them are refused: NATS takes no such MQTT client id.`,
		Example: `  coracle broker nats /etc/coracle/nats --host broker.example --node board-a,board-b
  nats-server -c /etc/coracle/nats/nats.conf`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := writeNATS(args[0], o, nodes)
			if err != nil {
				return fmt.Errorf("broker nats: %w", err)
			}
			fmt.Fprint(cmd.OutOrStdout(), o.hint("nats-server -c "+conf))
			fmt.Fprintf(cmd.OutOrStdout(), "It admits %d nodes; write it again when another is to join.\n", len(nodes))
			return nil
		},
	}
	o.flags(cmd.Flags())
	cmd.Flags().StringSliceVar(&nodes, "node", nil, "name of a node to admit; may be repeated, or several with commas between them")
	return cmd
}

// brokerFiles are of the listener, below dir.
type brokerFiles struct{ dir, ca, cert, key string }

// certify writes the listener's files into dir; name is the broker's make.
func (o *brokerOptions) certify(dir, name string) (brokerFiles, error) {
	var f brokerFiles
	dir, err := filepath.Abs(dir)
	if err != nil {
		return f, err
	}
	pkiDir := o.pkiDir
	if pkiDir == "" {
		pkiDir = filepath.Join(up.Layout{Root: o.dataDir}.ControlPlane(), "pki")
	}
	authority, err := pki.Open(pki.Options{Dir: pkiDir})
	if err != nil {
		return f, err
	}
	leaf, err := authority.Serving(name, append([]string{enrollment.MQTTServerName}, o.hosts...)...)
	if err != nil {
		return f, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return f, err
	}
	f = brokerFiles{dir: dir, ca: filepath.Join(dir, "ca.crt"), cert: filepath.Join(dir, "broker.crt"), key: filepath.Join(dir, "broker.key")}
	for from, to := range map[string]string{authority.TrustFile(): f.ca, leaf.CertFile(): f.cert, leaf.KeyFile(): f.key} {
		raw, err := os.ReadFile(from)
		if err != nil {
			return f, err
		}
		if err := os.WriteFile(to, raw, 0o600); err != nil {
			return f, err
		}
	}
	return f, nil
}

// writeMosquitto returns the path of the configuration.
func writeMosquitto(dir string, o brokerOptions) (string, error) {
	f, err := o.certify(dir, "mosquitto")
	if err != nil {
		return "", err
	}
	files := broker.MosquittoFiles{CA: f.ca, Cert: f.cert, Key: f.key, ACL: filepath.Join(f.dir, "acl")}
	conf := filepath.Join(f.dir, "mosquitto.conf")
	for file, text := range map[string]string{files.ACL: broker.MosquittoACL(), conf: broker.MosquittoConf(o.listen, o.port, files)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return conf, giveToMosquitto(f.dir)
}

// writeNATS returns the path of the configuration.
func writeNATS(dir string, o brokerOptions, nodes []string) (string, error) {
	f, err := o.certify(dir, "nats")
	if err != nil {
		return "", err
	}
	text, err := broker.NATSConf(o.listen, o.port, broker.NATSFiles{CA: f.ca, Cert: f.cert, Key: f.key, Store: filepath.Join(f.dir, "jetstream")}, nodes)
	if err != nil {
		return "", err
	}
	conf := filepath.Join(f.dir, "nats.conf")
	return conf, os.WriteFile(conf, []byte(text), 0o600)
}

// giveToMosquitto makes the files those of the user that mosquitto becomes when
// root starts it, if there is one.
func giveToMosquitto(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("mosquitto")
	if err != nil {
		return nil // not installed here: the files are to be copied
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Chown(filepath.Join(dir, e.Name()), uid, gid); err != nil {
			return err
		}
	}
	return os.Chown(dir, uid, gid)
}
