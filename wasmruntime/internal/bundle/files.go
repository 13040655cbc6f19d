package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ModuleName is what messages call the module.
func (s *Spec) ModuleName() string {
	if s.Name != "" {
		return s.Name
	}
	return filepath.Base(s.Module)
}

// WriteJSON writes a file of the bundle whole or not at all. It isn't synced:
// after a power cut no record of this boot means anything.
func WriteJSON(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// ReadJSON reads a file of the bundle. A file that isn't whole, which ends
// with a newline, is as good as none: os.ErrNotExist.
func ReadJSON(dir, name string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	if !bytes.HasSuffix(b, []byte("\n")) {
		return fmt.Errorf("%s is incomplete: %w", filepath.Join(dir, name), os.ErrNotExist)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// Self is the state of the calling process.
func Self() (State, error) {
	boot, err := BootID()
	if err != nil {
		return State{}, err
	}
	start, err := StartTime(os.Getpid())
	return State{PID: os.Getpid(), StartTime: start, BootID: boot, StartedAt: time.Now()}, err
}

// BootID is the kernel's identity of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot. A
// zombie has one too.
func StartTime(pid int) (uint64, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Gone is true if the process has ended, reaped or not, or is another one.
func (s State) Gone() bool {
	fields, err := stat(s.PID)
	if err != nil {
		return true
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return err != nil || start != s.StartTime || fields[0] == "Z" || fields[0] == "X"
}

// ZombieStatus is the wait status of the process if it has ended and isn't
// reaped yet: field 52 of /proc/PID/stat, which tells it to those who may
// trace the process.
func (s State) ZombieStatus() (uint32, bool) {
	fields, err := stat(s.PID)
	if err != nil || fields[0] != "Z" || fields[19] != strconv.FormatUint(s.StartTime, 10) || len(fields) < 50 {
		return 0, false
	}
	status, err := strconv.ParseUint(fields[49], 10, 32)
	return uint32(status), err == nil && status != 0
}

// stat gives the fields of /proc/PID/stat after the name, from field 3 on.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	i := bytes.LastIndexByte(b, ')')
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has no start time", pid)
	}
	return fields, nil
}
