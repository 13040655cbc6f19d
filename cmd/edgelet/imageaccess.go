package main

import (
	"path/filepath"

	"github.com/coracle-edge/coracle/edgelet/images"
)

// What --image-pull-credentials-verification-policy may be, as in a kubelet's
// configuration. Its other two policies have the registry asked for images that nobody
// pulled, which a board that was given them by hand can't.
const (
	verifyNever  = "NeverVerify"
	verifyPulled = "NeverVerifyPreloadedImages"
)

func (a *agent) puller(s images.Service) *images.Puller {
	return images.New(images.Config{Service: s, AccessFile: filepath.Join(a.o.dataDir, "image-pulls.json"), Shared: a.o.imageAccess == verifyNever, Log: a.log})
}
