package board

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// diskSize is of a file with holes.
const diskSize = "1500M"

func (b *Board) disk() string  { return filepath.Join(b.dir, "disk") }
func (b *Board) first() string { return filepath.Join(b.dir, "first") }

// makeDisk makes the disk and the first root file system. As root or not: mkfs reads
// the files, nothing is mounted.
func (b *Board) makeDisk(ctx context.Context, cfg Config) error {
	root := filepath.Join(b.dir, "root")
	copies := []string{filepath.Join(cfg.Parts, "root") + "/."}
	if cfg.OCI {
		copies = append(copies, filepath.Join(cfg.Parts, "oci")+"/.")
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, from := range copies {
		if err := tool(ctx, "", "cp", "-a", from, root); err != nil {
			return err
		}
	}
	firstRoot := filepath.Join(b.dir, "first-root")
	if err := tool(ctx, "", "cp", "-a", filepath.Join(cfg.Parts, "first"), firstRoot); err != nil {
		return err
	}
	for name, to := range map[string]string{"first-init": filepath.Join(firstRoot, "init"), "inittab": filepath.Join(root, "etc/inittab"),
		"board-setup": filepath.Join(root, "etc/board-setup"), "board-shell": filepath.Join(root, "etc/board-shell")} {
		raw, err := fs.ReadFile(guest, path.Join("guest", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, raw, 0o755); err != nil {
			return err
		}
	}
	for to, from := range cfg.Files {
		to = filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := tool(ctx, "", "install", "-m", "755", from, to); err != nil {
			return err
		}
	}
	if err := tool(ctx, firstRoot, "sh", "-c", "find . | busybox cpio -o -H newc -R 0:0 2>/dev/null | gzip -1 >"+b.first()); err != nil {
		return err
	}
	if err := tool(ctx, "", "/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-d", root, b.disk(), diskSize); err != nil {
		return err
	}
	return tool(ctx, "", "rm", "-rf", root, firstRoot)
}

func tool(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, text)
	}
	return nil
}
