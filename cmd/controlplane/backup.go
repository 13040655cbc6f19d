package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/component-base/version"

	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/restoration"
	"github.com/coracle-edge/coracle/controlplane/snapshots"
)

// etcdReserve is what is kept free on the disk for etcd, in bytes. A snapshot
// leaves twice as much: etcd refuses writes below it.
const etcdReserve = 16 << 20

// datastore is where the flags say that the cluster's state is.
func (o options) datastore(logger *slog.Logger) datastore.Config {
	return datastore.Config{
		Dir:       filepath.Join(o.dataDir, "etcd"),
		Endpoints: o.etcdEndpoints,
		CAFile:    o.etcdCAFile, CertFile: o.etcdCertFile, KeyFile: o.etcdKeyFile,
		Reserve: etcdReserve, Logger: logger,
	}
}

// openSnapshots returns the keeper of snapshots, having taken one if another
// version wrote last. Nothing of this version has written yet.
func openSnapshots(ctx context.Context, o options, store *datastore.Store, logger *slog.Logger) (*snapshots.Keeper, error) {
	keeper, err := snapshots.New(snapshots.Config{
		Dir: o.snapshotDir, Source: store, Interval: o.snapshotInterval, Keep: o.snapshotKeep, MaxBytes: o.snapshotBytes,
		Reserve: 2 * etcdReserve, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	if _, err := keeper.BeforeUpgrade(ctx, filepath.Join(o.dataDir, "version"), version.Get().GitVersion); err != nil {
		logger.Error("no snapshot was taken before this upgrade; it will be tried again at the next start", "err", err)
	}
	return keeper, nil
}

// operations is what operators may do with the cluster itself. All of it is known
// before the server runs.
type operations struct{ *http.ServeMux }

func newOperations(keeper *snapshots.Keeper) operations {
	o := operations{http.NewServeMux()}
	o.Handle(snapshots.Path, keeper.Handler())
	o.Handle(snapshots.Path+"/", keeper.Handler())
	return o
}

func (o operations) settleRestores(f *fleet, server *apiserver.Server) error {
	service, err := f.restoration(server)
	if err != nil {
		return err
	}
	handler := f.duty.only(service.Handler())
	o.Handle(restoration.StatusPath, handler)
	o.Handle(restoration.StatusPath+"/", handler)
	return nil
}

// restore is --restore.
func restore(ctx context.Context, o options, logger *slog.Logger) error {
	file, err := o.snapshotFile()
	if err != nil {
		return err
	}
	etcd := o.datastore(logger)
	r, err := datastore.Restore(ctx, datastore.RestoreConfig{Snapshot: file, Dir: etcd.Dir, Reserve: etcd.Reserve, Logger: logger})
	if err != nil {
		return err
	}
	fmt.Printf("%s is the state of the cluster in %s now, as of its revision %d.\n", file, o.dataDir, r.Mark.Revision)
	if r.Aside != "" {
		fmt.Printf("What was there before is in %s until the next restore; remove it when all is settled.\n", r.Aside)
	}
	fmt.Println("Start the control plane. Nodes keep all that they run; then\n" +
		"    coracle restore status    lists what runs and isn't known to the cluster\n" +
		"    coracle restore adopt     brings that back into the cluster\n" +
		"    coracle restore confirm   has nodes follow the cluster as it is now: what it doesn't know stops")
	return nil
}

// snapshotFile is the file that --restore means.
func (o options) snapshotFile() (string, error) {
	if _, err := snapshots.ParseName(o.restore); err == nil {
		if file := filepath.Join(o.snapshotDir, o.restore); readable(file) {
			return file, nil
		}
	}
	if !readable(o.restore) {
		return "", fmt.Errorf("--restore %s: no such readable file, here or in %s; `coracle snapshot list` lists those there are", o.restore, o.snapshotDir)
	}
	return o.restore, nil
}

func readable(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// markRestored is --mark-restored.
func markRestored(ctx context.Context, o options, logger *slog.Logger) error {
	if dir := o.datastore(logger).Dir; len(o.etcdEndpoints) == 0 && !readable(filepath.Join(dir, "member")) {
		return fmt.Errorf("--mark-restored: there is no etcd in %s", dir)
	}
	store, err := datastore.Open(ctx, o.datastore(logger))
	if err != nil {
		return err
	}
	defer store.Close()
	if _, err := store.PutMark(ctx, "", time.Now()); err != nil {
		return err
	}
	fmt.Println("This etcd is another incarnation of the cluster from now on. Start the control plane, then see `coracle restore status`.")
	return nil
}
