package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/cmd/coracle/up"
	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/broker"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

func brokerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "broker", Short: "Set up an MQTT broker of your own in the place of the embedded one"}
	cmd.AddCommand(mosquittoCommand())
	return cmd
}

func mosquittoCommand() *cobra.Command {
	var dataDir, pkiDir, listen string
	var hosts []string
	var port int
	cmd := &cobra.Command{
		Use:   "mosquitto DIR",
		Short: "Write a mosquitto.conf for the fleet link, with its ACL and a certificate of the cluster's, into DIR",
		Long: `Write what mosquitto needs to carry the fleet link into DIR: mosquitto.conf, the
ACL, the cluster's root certificate, and a certificate that the cluster's root
signed. It is to be run where the control plane's data folder is, once before the
first start or at any time later, and again before the certificate ends (a year).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if pkiDir == "" {
				pkiDir = filepath.Join(up.Layout{Root: dataDir}.ControlPlane(), "pki")
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			conf, err := writeMosquitto(dir, pkiDir, listen, port, hosts)
			if err != nil {
				return fmt.Errorf("broker mosquitto: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Start the broker:\n\n    mosquitto -c %s\n\nand the control plane with --mqtt-url=mqtts://%s:%d (`coracle up` takes it as --controlplane-arg=--mqtt-url=…).\n",
				conf, hosts[0], port)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dataDir, "data-dir", defaultDataDir(), "the data folder of `coracle up`")
	f.StringVar(&pkiDir, "pki-dir", "", "the control plane's pki folder, where it isn't below --data-dir")
	f.StringArrayVar(&hosts, "host", []string{"127.0.0.1"}, "name or address under which nodes and control plane reach the broker; may be repeated")
	f.StringVar(&listen, "listen", "0.0.0.0", "address on which the broker listens")
	f.IntVar(&port, "port", 8884, "port on which the broker listens")
	return cmd
}

// writeMosquitto returns the path of the configuration.
func writeMosquitto(dir, pkiDir, listen string, port int, hosts []string) (string, error) {
	authority, err := pki.Open(pki.Options{Dir: pkiDir})
	if err != nil {
		return "", err
	}
	leaf, err := authority.Serving("mosquitto", append([]string{enrollment.MQTTServerName}, hosts...)...)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	files := broker.MosquittoFiles{CA: path("ca.crt"), Cert: path("broker.crt"), Key: path("broker.key"), ACL: path("acl")}
	for from, to := range map[string]string{authority.TrustFile(): files.CA, leaf.CertFile(): files.Cert, leaf.KeyFile(): files.Key} {
		raw, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(to, raw, 0o600); err != nil {
			return "", err
		}
	}
	conf := path("mosquitto.conf")
	for file, text := range map[string]string{files.ACL: broker.MosquittoACL(), conf: broker.MosquittoConf(listen, port, files)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return conf, giveToMosquitto(dir)
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
