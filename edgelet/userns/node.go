package userns

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// account is whose subordinate ids pods get: a kubelet's.
const account = "kubelet"

// asks is how long getsubids may take: it may ask a server on the network.
const asks = 30 * time.Second

// Node is what the node has to give: the subordinate ids of the user kubelet if
// there are that user and the program getsubids, else all ids but the first PerPod.
// Users and groups must have the same, in one range.
func Node() (Range, error) {
	return node(func(name string) error { _, err := user.Lookup(name); return err }, "getsubids")
}

func node(lookup func(string) error, program string) (Range, error) {
	all := Range{First: PerPod, Length: 1<<32 - PerPod}
	// The user first: getsubids doesn't tell "nobody" from "the server is away".
	if err := lookup(account); err != nil {
		if unknown := user.UnknownUserError(""); errors.As(err, &unknown) {
			return all, nil
		}
		return Range{}, fmt.Errorf("looking up the user %s: %w", account, err)
	}
	path, err := exec.LookPath(program)
	if errors.Is(err, exec.ErrNotFound) {
		return all, nil
	}
	if err != nil {
		return Range{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), asks)
	defer cancel()
	users, err := exec.CommandContext(ctx, path, account).Output()
	if err != nil {
		return Range{}, fmt.Errorf("error retrieving additional uids for user %q: %w", account, err)
	}
	groups, err := exec.CommandContext(ctx, path, "-g", account).Output()
	if err != nil {
		return Range{}, fmt.Errorf("error retrieving additional gids for user %q: %w", account, err)
	}
	if string(users) != string(groups) {
		return Range{}, fmt.Errorf("mismatched subuids and subgids for user %q", account)
	}
	return parseSubIDs(string(users))
}

// parseSubIDs reads the one line of getsubids, such as "0: kubelet 65536 2147483648".
func parseSubIDs(out string) (Range, error) {
	line := strings.Trim(out, "\n")
	if strings.Contains(line, "\n") {
		return Range{}, fmt.Errorf("error parsing line %q: it must contain only one line", out)
	}
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return Range{}, fmt.Errorf("invalid line %q", out)
	}
	first, err := strconv.ParseUint(fields[2], 10, 32)
	if err != nil {
		return Range{}, fmt.Errorf("error parsing line %q: %w", out, err)
	}
	length, err := strconv.ParseUint(fields[3], 10, 32)
	if err != nil {
		return Range{}, fmt.Errorf("error parsing line %q: %w", out, err)
	}
	return Range{First: uint32(first), Length: uint32(length)}, nil
}
